"""Running a list of tasks: failures, and what is done again after them."""

from __future__ import annotations

import pytest

from apps.core.errors import FailureKind, NoRoomError
from ensemble.jobs import Outcome, Task
from ensemble.workflow import TaskFailedError, TaskRejectedError, run_tasks, to_do_again
from tests.ensemble.search.simulated import SimulatedJobs

TASKS = [
    Task("a", "inference", {}),
    Task("b", "inference", {}),
    Task("merge", "reconciliation", {}, after=("a", "b")),
    Task("score", "evaluation", {}, after=("merge",)),
]


def good(task: Task) -> Outcome:
    return Outcome(task.key, 1, {"result": task.key})


def test_records_of_all_tasks_come_back_by_key() -> None:
    progress: list[tuple[int, int]] = []
    records = run_tasks(SimulatedJobs(good), TASKS, lambda done, total: progress.append((done, total)))
    assert records == {task.key: {"result": task.key} for task in TASKS}
    assert progress[-1] == (4, 4)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailureKind.BAD_CONFIGURATION, TaskRejectedError),
        (FailureKind.KILLED, TaskFailedError),
        (FailureKind.NO_ROOM, NoRoomError),
    ],
)
def test_failure_is_told_and_what_waits_for_it_is_taken_back(kind: FailureKind, error: type[Exception]) -> None:
    def fail_b(task: Task) -> Outcome:
        return Outcome("b", 7, None, kind, "no such volume") if task.key == "b" else good(task)

    jobs = SimulatedJobs(fail_b)
    with pytest.raises(error, match=r"inference \(job 7, b\): no such volume"):
        run_tasks(jobs, TASKS)
    assert {"merge", "score"} <= set(jobs.forgotten)


def test_after_a_failure_only_it_and_what_waits_for_it_is_done_again() -> None:
    jobs = SimulatedJobs(good)
    jobs.ended = {"a": good(TASKS[0]), "b": Outcome("b", 7, None, FailureKind.KILLED, "killed")}
    assert to_do_again(jobs, TASKS) == ["b", "merge", "score"]
    run_tasks(jobs, TASKS)
    assert jobs.forgotten == ["b", "merge", "score"]
