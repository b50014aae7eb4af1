"""Balsam sites on this machine: made from a template in `sites/`, with their agent and their launchers."""

from ensemble.sites.agent import agent_running, start_agent, stop_agent
from ensemble.sites.launchers import has_launcher, launcher_nodes, running_nodes, stop_launchers, submit_batch_job
from ensemble.sites.site import Site, create_site, list_sites, open_site, register_stages, templates

__all__ = [
    "Site",
    "agent_running",
    "create_site",
    "has_launcher",
    "launcher_nodes",
    "list_sites",
    "open_site",
    "register_stages",
    "running_nodes",
    "start_agent",
    "stop_agent",
    "stop_launchers",
    "submit_batch_job",
    "templates",
]
