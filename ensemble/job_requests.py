"""What is asked of Balsam about many jobs at once, in requests of a size that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
"""A job as the server tells of it: `id`, `state`, `tags`, `data`, `workdir`, `last_update` (ISO 8601)."""

# Numbers of jobs that fit into the address of one request.
IDS_PER_REQUEST = 500


def fetch_jobs(query: dict[str, Any]) -> Sequence[Row]:
    """The jobs that fit a query of Balsam's, as plain rows: making its models of them takes three times as long."""
    from balsam.api import Job

    rows: Sequence[Row] = Job.objects._fetch_pages(query, None, None, None)[1]
    return rows


def delete_jobs(ids: Sequence[int]) -> None:
    """Take jobs out of Balsam; it keeps those that an agent or a launcher holds."""
    from balsam.api import Job

    for some in _parts(ids):
        Job.objects.filter(id=some).delete()


def stop_jobs(ids: Sequence[int], site_path: Path) -> None:
    """End the processes that these jobs have on this machine, and say in the jobs that they are not to start again."""
    from balsam.api import Job

    from ensemble.sites.processes import end_jobs

    for some in _parts(ids):
        jobs = list(Job.objects.filter(id=some))
        for job in jobs:
            job.data = {**job.data, "cancelled": True}
        Job.objects.bulk_update(jobs)
        end_jobs(site_path, {int(job.id) for job in jobs})


def failure_message(number: int) -> str:
    """What Balsam says of a job that it made FAILED itself: a hook raised, the application could not be loaded."""
    from balsam.api import EventLog

    for event in EventLog.objects.filter(job_id=number, to_state="FAILED"):
        parts = [str(event.data[name]) for name in ("message", "exception", "error") if event.data.get(name)]
        if parts:
            return ": ".join(parts)
    return "no message was left"


def _parts(ids: Sequence[int]) -> Iterator[list[int]]:
    for first in range(0, len(ids), IDS_PER_REQUEST):
        yield list(ids[first : first + IDS_PER_REQUEST])
