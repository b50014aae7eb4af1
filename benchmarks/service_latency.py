"""Latency of the embedded Balsam service: from nothing to a running site, and from creating a job to its end.

The job is a no-op shell command.  Its latency is the time from just before the request that creates it to the time that
the server noted for JOB_FINISHED; server and client share this machine's clock, so that watching costs nothing.
"""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure, benchmark_main, median, percentile

NODES = 4
RATE = 8.0
OFFERED_RATE = 8.5
CAMPAIGN = {"campaign": "latency"}
PATIENCE_S = 60.0


def run(quick: bool) -> list[Figure]:
    """Measure in a fresh temporary home; nothing is left behind."""
    from ensemble import service, sites

    with tempfile.TemporaryDirectory(prefix="ensemble-latency-") as folder:
        home = Path(folder) / "home"
        try:
            begin = time.perf_counter()
            service.start(home)
            site = sites.create_site(home, "latency", nodes=NODES)
            sites.start_agent(site)
            up_s = time.perf_counter() - begin
            service.connect(home)
            app = _no_op(site.name)
            sites.submit_batch_job(site, nodes=NODES, wall_time_min=10)
            _one(app, 0)  # waits for the launcher, and is not counted
            single = [_one(app, i + 1) for i in range(5 if quick else 50)]
            streamed, rate = _stream(app, seconds=5.0 if quick else 60.0)
            begin = time.perf_counter()
            service.start(home)
            again_s = time.perf_counter() - begin
        finally:
            begin = time.perf_counter()
            service.stop(home)
            stop_s = time.perf_counter() - begin
    return [
        Figure("from nothing to service, site and agent", up_s, "s", 5.0),
        Figure("create to JOB_FINISHED, one job at a time, median", median(single), "s", 0.6),
        Figure("create to JOB_FINISHED, one job at a time, 95 %", percentile(single, 95), "s"),
        Figure(
            f"rate sustained for {'5 s' if quick else 'a minute'}",
            rate,
            "jobs/s",
            RATE,
            "higher",
            note=f"offered: {OFFERED_RATE} jobs/s",
        ),
        Figure("create to JOB_FINISHED at that rate, median", median(streamed), "s"),
        Figure("create to JOB_FINISHED at that rate, 95 %", percentile(streamed, 95), "s"),
        Figure("second start, a no-op", again_s, "s"),
        Figure("stop of everything, launcher running", stop_s, "s"),
    ]


def _no_op(site_name: str) -> Any:
    from balsam.api import ApplicationDefinition

    class NoOp(ApplicationDefinition):
        """Does nothing."""

        site = site_name
        command_template = ":"

    NoOp.sync()
    return NoOp


def _one(app: Any, number: int) -> float:
    """Seconds from creating one job to its end."""
    created = time.time()
    job = app.submit(workdir=f"one/{number}", tags=CAMPAIGN)
    _wait([job])
    return _finished_at([job])[job.id] - created


def _stream(app: Any, seconds: float) -> tuple[list[float], float]:
    """Create jobs at `OFFERED_RATE` for `seconds`: their latencies, and the rate at which they ended.

    The rate is that of the jobs' ends between the first and the last; a backlog that grows makes it smaller than that.
    """
    created: dict[int, float] = {}
    jobs = []
    begin = time.time()
    for i in range(int(seconds * OFFERED_RATE)):
        time.sleep(max(0.0, begin + i / OFFERED_RATE - time.time()))
        now = time.time()
        job = app.submit(workdir=f"stream/{i}", tags=CAMPAIGN)
        created[job.id] = now
        jobs.append(job)
    _wait(jobs)
    ends = _finished_at(jobs)
    latencies = [ends[number] - moment for number, moment in created.items()]
    return latencies, (len(jobs) - 1) / (max(ends.values()) - min(ends.values()))


def _wait(jobs: list[Any]) -> None:
    from balsam.api import Job

    deadline = time.monotonic() + PATIENCE_S
    ids = [job.id for job in jobs]
    while Job.objects.filter(id=ids[-200:], state="JOB_FINISHED").count() < len(ids[-200:]):
        if time.monotonic() > deadline:
            raise SystemExit(f"jobs did not finish within {PATIENCE_S:.0f} s")
        time.sleep(0.1)


def _finished_at(jobs: list[Any]) -> dict[int, float]:
    """UTC epoch seconds at which the server saw each job finish."""
    from balsam.api import EventLog

    found: dict[int, float] = {}
    ids = [job.id for job in jobs]
    for start in range(0, len(ids), 100):
        for event in EventLog.objects.filter(job_id=ids[start : start + 100], to_state="JOB_FINISHED"):
            moment: datetime = event.timestamp
            found[event.job_id] = moment.replace(tzinfo=UTC).timestamp()
    return found


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.service_latency", __doc__, run))
