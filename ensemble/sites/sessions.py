"""Sessions: the leases under which agents and launchers hold jobs.

The server ends a lease by itself only after five silent minutes.  Here the lease of a process that is known to be dead
is given back at once; jobs that were running under it go to RUN_TIMEOUT, from where their application restarts them.
"""

from __future__ import annotations

from apps.core.errors import EnsembleError
from ensemble.sites import processes
from ensemble.sites.site import Site, client_of


def release_sessions(site: Site) -> int:
    """Give back the leases of the site's dead launchers, and of its agent where none lives; returns how many."""
    client = client_of(site)
    living = _batch_jobs_alive(site)
    agent = processes.agent_process(site.path) is not None
    released = 0
    for session in list(client.Session.objects.all()):
        if session.site_id != site.id:
            continue
        held = agent if session.batch_job_id is None else session.batch_job_id in living
        if not held:
            # The launcher may be ending in just this moment and have given it back itself.
            try:
                session.delete()
            except EnsembleError:
                continue
            released += 1
    return released


def _batch_jobs_alive(site: Site) -> set[int]:
    """Numbers of the batch jobs whose launcher lives; the script's name carries the number."""
    scripts = {
        word.rpartition("qlaunch")[2].removesuffix(".sh")
        for process in processes.launchers(site.path)
        for word in [processes.script_of(process)]
    }
    return {int(number) for number in scripts if number.isdigit()}
