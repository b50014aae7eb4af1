"""Launchers: the pilots that run a site's jobs, started through Balsam's queue of batch jobs."""

from __future__ import annotations

from collections.abc import Mapping

from apps.core.errors import ParameterError
from ensemble.sites import processes
from ensemble.sites.sessions import release_sessions
from ensemble.sites.site import Site, client_of

QUEUE = PROJECT = "local"


def submit_batch_job(site: Site, nodes: int, wall_time_min: int, filter_tags: Mapping[str, str] | None = None) -> int:
    """Ask for a launcher on `nodes` virtual nodes for `wall_time_min` minutes; returns the batch job's number.

    It runs jobs that carry all of `filter_tags`.  The site's agent starts it within about a second; it ends some
    minutes after the last job, or two minutes before its time is over (Balsam's margin), when running jobs go to
    RUN_TIMEOUT.
    """
    if not 1 <= nodes <= site.nodes:
        raise ParameterError(f"nodes = {nodes}: site {site.name!r} has 1 to {site.nodes} nodes")
    if wall_time_min < 1:
        raise ParameterError(f"wall_time_min = {wall_time_min}: expected at least 1 minute")
    job = client_of(site).BatchJob.objects.create(
        site_id=site.id,
        num_nodes=nodes,
        wall_time_min=wall_time_min,
        job_mode="mpi",
        queue=QUEUE,
        project=PROJECT,
        filter_tags=dict(filter_tags or {}),
    )
    return int(job.id)


def running_nodes(site: Site, tags: Mapping[str, str] | None = None) -> int:
    """Nodes of the site's batch jobs that run just now; with `tags`, of those that run jobs with these tags.

    The site's agent says it of every batch job about once a second, as the machine's scheduler says it to the agent.
    """
    running = client_of(site).BatchJob.objects.filter(site_id=site.id, state="running")
    return sum(job.num_nodes for job in running if tags is None or job.filter_tags.items() <= tags.items())


def launcher_nodes(site: Site) -> int:
    """Nodes of the site's batch jobs that run or are to come."""
    states = ["pending_submission", "queued", "running"]
    return sum(job.num_nodes for job in client_of(site).BatchJob.objects.filter(site_id=site.id, state=states))


def has_launcher(site: Site) -> bool:
    """Whether a launcher of the site runs, or is to come: a batch job waits for the agent or in the machine's queue."""
    # In this order: what waits no longer when it is asked for has its process.
    waiting = client_of(site).BatchJob.objects.filter(site_id=site.id, state=["pending_submission", "queued"])
    return bool(len(waiting)) or bool(processes.batch_scripts(site.path)) or bool(processes.launchers(site.path))


def stop_launchers(site: Site) -> bool:
    """End all launchers of the site and their jobs; False where none was running.

    Batch jobs that wait to be started are withdrawn.  Jobs that were running go to RUN_TIMEOUT.
    """
    client = client_of(site)
    waiting = list(client.BatchJob.objects.filter(site_id=site.id, state="pending_submission"))
    for job in waiting:
        job.state = "finished"
    client.BatchJob.objects.bulk_update(waiting)
    ended = processes.end_launchers(site.path)
    release_sessions(site)
    return ended
