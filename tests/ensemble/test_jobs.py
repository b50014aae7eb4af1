"""Tasks and their jobs where Balsam is simulated: a lost service, requests that were sent twice, cancelled tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.core.errors import FailureKind, ParameterError, TransientError
from ensemble import jobs as jobs_module
from ensemble.campaigns import Campaign, CampaignPlan, create_campaign
from ensemble.job_requests import Row
from ensemble.jobs import CampaignJobs, Task
from ensemble.polling import EndedJobs

STAMP = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


class Balsam:
    """Jobs in memory; each `create` makes them `times` times, as a repeated request does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.calls: list[int] = []
        self.times = 1
        self.down = False
        self.slow_s = 0.0
        self.stopped: list[int] = []
        objects = SimpleNamespace(bulk_create=self.create)
        job = type("Job", (SimpleNamespace,), {"objects": objects})
        monkeypatch.setattr("balsam.api.Job", job)
        monkeypatch.setattr(jobs_module, "fetch_jobs", self.fetch)
        monkeypatch.setattr(jobs_module, "delete_jobs", self.delete)
        monkeypatch.setattr(jobs_module, "stop_jobs", lambda ids, site: self.stopped.extend(ids))
        monkeypatch.setattr(jobs_module, "failure_message", lambda number: "what Balsam says")
        monkeypatch.setattr(jobs_module, "EndedJobs", lambda tags: EndedJobs(tags, self.fetch))

    def create(self, jobs: list[Any]) -> list[Any]:
        time.sleep(self.slow_s)
        self.calls.append(len(jobs))
        for _ in range(self.times):
            for job in jobs:
                job.id = len(self.rows) + 1
                row = {"id": job.id, "state": "STAGED_IN", "last_update": STAMP, "workdir": str(job.workdir)}
                size = {"num_nodes": job.num_nodes, "threads_per_rank": job.threads_per_rank}
                self.rows[job.id] = row | {"tags": job.tags, "data": job.data} | size
        return jobs

    def fetch(self, query: dict[str, Any]) -> Sequence[Row]:
        if self.down:
            raise TransientError("no connection")
        wanted = query.get("state")
        return [row for row in self.rows.values() if wanted is None or row["state"] in wanted]

    def delete(self, ids: Sequence[int]) -> None:
        for number in ids:
            self.rows.pop(number, None)

    def end(self, number: int, state: str = "JOB_FINISHED", **data: Any) -> None:
        self.rows[number] |= {"state": state, "data": self.rows[number]["data"] | data}


@pytest.fixture
def balsam(monkeypatch: pytest.MonkeyPatch) -> Balsam:
    return Balsam(monkeypatch)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return create_campaign(tmp_path, CampaignPlan(name="demo"))


def open_jobs(campaign: Campaign, poll_s: float = 0.01) -> CampaignJobs:
    return CampaignJobs(campaign, {"phantom": 7}, Path("data"), poll_s=poll_s)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_service_that_is_lost_for_good_is_told_to_whoever_waits(balsam: Balsam, campaign: Campaign) -> None:
    with open_jobs(campaign, poll_s=1e-4) as jobs:
        waiting = jobs.submit(Task("a", "phantom", {}))
        until(lambda: balsam.rows)
        balsam.down = True
        error = waiting.exception(10)
        assert isinstance(error, TransientError)
        assert "the Balsam service does not answer (no connection)" in str(error)
        later = jobs.submit(Task("a", "phantom", {})).exception(10)  # it is still lost
        assert isinstance(later, TransientError)
        assert balsam.calls == [1]
        balsam.down = False
        balsam.end(1, record={"result": 1})
        assert jobs.submit(Task("a", "phantom", {})).result(10).record == {"result": 1}


def test_a_service_that_comes_back_in_time_costs_nothing(balsam: Balsam, campaign: Campaign) -> None:
    with open_jobs(campaign) as jobs:
        waiting = jobs.submit(Task("a", "phantom", {}))
        until(lambda: balsam.rows)
        balsam.down = True
        time.sleep(0.1)
        balsam.end(1, record={"result": 1})
        balsam.down = False
        assert waiting.result(10).failure is None


def test_what_a_repeated_request_made_twice_is_taken_back(
    balsam: Balsam, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "SLOW_SUBMISSION_S", 0.0)
    balsam.times = 2
    with open_jobs(campaign) as jobs:
        futures = [jobs.submit(Task(key, "phantom", {})) for key in ("a", "b")]
        until(lambda: len(balsam.rows) == 2 and balsam.calls == [2])
        assert sorted(balsam.rows) == [1, 2]  # the older ones, which may be running
        for number in (1, 2):
            balsam.end(number, record={"result": number})
        assert [future.result(10).job_id for future in futures] == [1, 2]


def test_tasks_of_one_folder_go_one_after_the_other_and_parents_first(balsam: Balsam, campaign: Campaign) -> None:
    tasks = [
        Task("child", "phantom", {}, after=("a",)),
        Task("a", "phantom", {}, workdir="shared"),
        Task("b", "phantom", {}, workdir="shared"),
    ]
    with open_jobs(campaign) as jobs:
        for task in tasks:
            jobs.submit(task)
        until(lambda: len(balsam.rows) == 3)
        assert balsam.calls == [1, 2]
        root = f"demo-{campaign.uid}"
        assert {row["tags"]["task"]: row["workdir"] for row in balsam.rows.values()} == {
            "a": f"{root}/shared",
            "b": f"{root}/shared",
            "child": f"{root}/child",
        }
        assert jobs.workdir("b") == Path(f"data/{root}/shared")
    with open_jobs(campaign) as again:
        assert again.workdir("b") == Path(f"data/{root}/shared")
        assert again.workdir("unknown") == Path(f"data/{root}/unknown")


def test_a_cancelled_task_has_ended_wherever_it_was(balsam: Balsam, campaign: Campaign) -> None:
    with open_jobs(campaign) as jobs:
        future = jobs.submit(Task("waits", "phantom", {}))
        until(lambda: jobs.knows("waits"))
        jobs.cancel(["waits", "never heard of"])
        assert future.result(0).failure is FailureKind.KILLED
        assert future.result(0).message == "was cancelled"
        assert balsam.rows == {}
        assert balsam.stopped == [1]
        balsam.slow_s = 0.1
        on_its_way = jobs.submit(Task("on its way", "phantom", {}))
        time.sleep(0.06)
        jobs.cancel(["on its way"])
        assert on_its_way.result(0).failure is FailureKind.KILLED
        until(lambda: balsam.calls == [1, 1])
        until(lambda: not balsam.rows)
        jobs.forget(["waits"])
        jobs.submit(Task("waits", "phantom", {}))
        until(lambda: len(balsam.calls) == 3)


def test_an_ended_task_is_not_cancelled(balsam: Balsam, campaign: Campaign) -> None:
    with open_jobs(campaign) as jobs:
        future = jobs.submit(Task("a", "phantom", {}))
        until(lambda: balsam.rows)
        balsam.end(1, record={"result": 1})
        future.result(10)
        jobs.cancel(["a"])
        assert jobs.outcome("a") == future.result(0)
        assert list(balsam.rows) == [1]


@pytest.mark.parametrize(
    ("state", "data", "kind", "message"),
    [
        ("FAILED", {"failure": {"kind": "hung", "message": "why"}}, "hung", "why"),
        ("FAILED", {"failure": {"kind": "of tomorrow", "message": "why"}}, "bug", "why"),
        ("FAILED", {}, "bug", "what Balsam says"),
        ("FAILED", {"cancelled": True, "failure": {"kind": "bug", "message": "why"}}, "killed", "was cancelled"),
        ("JOB_FINISHED", {}, "bug", "the job is finished but holds no record of its stage"),
    ],
)
def test_failures(
    balsam: Balsam, campaign: Campaign, state: str, data: dict[str, Any], kind: str, message: str
) -> None:
    with open_jobs(campaign) as jobs:
        future = jobs.submit(Task("a", "phantom", {}))
        until(lambda: balsam.rows)
        balsam.end(1, state, attempts=2, **data)
        outcome = future.result(10)
        assert (outcome.failure, outcome.message, outcome.attempts, outcome.record) == (kind, message, 2, None)


def test_a_job_that_another_driver_has_submitted_since_is_found(balsam: Balsam, campaign: Campaign) -> None:
    with open_jobs(campaign) as jobs, open_jobs(campaign) as others:
        others.submit(Task("before", "phantom", {}))
        until(lambda: balsam.rows)
        balsam.end(1, record={"result": "before"})
        until(lambda: jobs.outcome("before"))  # from now on only ended jobs are asked for
        others.submit(Task("known", "phantom", {}))
        until(lambda: len(balsam.rows) == 2)
        assert not jobs.knows("known")
        jobs.find(["known", "unknown"])
        future = jobs.submit(Task("known", "phantom", {}))
        jobs.submit(Task("unknown", "phantom", {}))
        until(lambda: len(balsam.rows) == 3)
        assert balsam.calls == [1, 1, 1]
        balsam.end(2, record={"result": "one"})
        assert future.result(10).record == {"result": "one"}


def test_of_two_jobs_of_one_task_the_newer_counts(balsam: Balsam, campaign: Campaign) -> None:
    """The older was forgotten while it ran, so Balsam kept it."""
    with open_jobs(campaign) as jobs:
        jobs.submit(Task("a", "phantom", {}))
        until(lambda: balsam.rows)
    balsam.rows[2] = balsam.rows[1] | {"id": 2}
    balsam.end(1, record={"result": "old"})
    with open_jobs(campaign) as again:
        future = again.submit(Task("a", "phantom", {}))
        time.sleep(0.05)
        assert not future.done()
        balsam.end(2, record={"result": "new"})
        assert future.result(10).record == {"result": "new"}


def test_balsam_is_told_how_many_cores_a_rank_needs(balsam: Balsam, campaign: Campaign) -> None:
    with open_jobs(campaign) as jobs:
        jobs.submit(Task("a", "phantom", {"threads": 8}))
        jobs.submit(Task("b", "phantom", {}))
        until(lambda: len(balsam.rows) == 2)
    assert {row["tags"]["task"]: row["threads_per_rank"] for row in balsam.rows.values()} == {"a": 8, "b": 1}


@pytest.mark.parametrize("field", ["time_limit_s", "max_attempts", "num_nodes", "ranks_per_node", "jobs_per_node"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_tasks_that_cannot_be(field: str, value: float) -> None:
    with pytest.raises(ParameterError, match=f"task a: {field} = .*; expected a positive number"):
        Task("a", "phantom", {}, **{field: value})  # type: ignore[arg-type]
