"""What the driver submits, in which order, and what becomes of failures; the jobs leave nothing but their records."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apps.core.errors import EnsembleError, FailureKind
from apps.core.progress import FileReporter
from apps.core.volumes import write_volume
from apps.reconciliation.settings import IN_THE_MAKING
from ensemble.deployment import Deployment, LinkChoices, Resources, plan_deployment
from ensemble.deployment import driver as driver_module
from ensemble.deployment.driver import MAX_TRIES, Driver, SubvolumesFailedError
from ensemble.deployment.plan import keep_plan
from ensemble.deployment.progress import Progress, duration, voxels
from ensemble.deployment.records import Records, kept_out
from ensemble.deployment.tasks import DeploymentTasks
from ensemble.deployment.window import Window, window_size
from ensemble.jobs import Outcome, Task
from tests.ensemble.deployment import samples
from tests.ensemble.deployment.samples import (
    VOXEL_NM,
    FakeJobs,
    Hook,
    fake_record,
    sample_deployment,
    segmenting_keys,
)

RESOURCES = Resources(nodes=2, node_memory=8 << 30, subvolumes_per_job=2, reconciliation_jobs=3)
STEPS = {"inference": 4, "compare": 3, "solve": 1, "relabel": 3, "finish": 1}


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return sample_deployment(tmp_path)


def drive(
    deployment: Deployment, jobs: FakeJobs, window: int = 1, resources: Resources = RESOURCES, evaluate: bool = False
) -> Records:
    plan = plan_deployment(deployment, resources)
    keep_plan(plan)
    tasks = DeploymentTasks(plan, deployment)
    return Driver(plan, tasks, jobs, window, pieces=jobs.pieces).run(evaluate)


def kinds(keys: list[str]) -> list[str]:
    """What each job does: inference, compare, solve, ..."""
    return [key.split("/")[2].partition("-")[0] for key in keys]


def failing(condition: Callable[[Task], bool], kind: FailureKind, times: int = 10**6) -> Hook:
    left = [times]

    def hook(task: Task) -> FailureKind | None:
        if condition(task) and left[0]:
            left[0] -= 1
            return kind
        return None

    return hook


def test_comparisons_come_as_soon_as_they_can_and_the_rest_in_order(deployment: Deployment, tmp_path: Path) -> None:
    labelled = replace(deployment, labels=str(tmp_path / "labels.zarr"))
    jobs = FakeJobs(tmp_path / "jobs")
    drive(labelled, jobs, resources=replace(RESOURCES, subvolumes_per_job=1, reconciliation_jobs=8), evaluate=True)
    done = kinds(jobs.log)
    assert Counter(done) == {**STEPS, "inference": 8, "compare": 8, "relabel": 8, "evaluation": 1}
    assert done[-11:] == ["solve", *["relabel"] * 8, "finish", "evaluation"]


def test_a_comparison_does_not_wait_for_subvolumes_far_away(deployment: Deployment, tmp_path: Path) -> None:
    """Six in a row: each is compared when the next one is there."""
    write_volume(tmp_path / "row.zarr", np.zeros((16, 16, 96), np.uint8), VOXEL_NM)
    row = replace(deployment, image=str(tmp_path / "row.zarr"), output=tmp_path / "out-row.zarr")
    jobs = FakeJobs(tmp_path / "jobs")
    drive(row, jobs, resources=replace(RESOURCES, subvolumes_per_job=1, reconciliation_jobs=6))
    alternating = ["inference", "inference", *(["compare", "inference"] * 4), "compare", "compare", "solve"]
    assert kinds(jobs.log)[: len(alternating)] == alternating


def test_one_job_does_a_small_reconciliation(deployment: Deployment, tmp_path: Path) -> None:
    jobs = FakeJobs(tmp_path / "jobs")
    records = drive(deployment, jobs, resources=replace(RESOURCES, reconciliation_jobs=None))
    assert kinds(jobs.log) == ["inference"] * 4 + ["all"]
    assert records.by_step["reconciliation"]["result"]["complete"]
    assert kept_out(records.by_step["inference"]).subvolumes == 8
    measured = records.measured()
    assert (measured.segmented_voxels, measured.speed) == (80, 20.0)


def test_the_same_again_does_nothing(deployment: Deployment, tmp_path: Path) -> None:
    jobs = FakeJobs(tmp_path / "jobs")
    first = drive(deployment, jobs)
    jobs.log.clear()
    again = drive(deployment, jobs)
    assert jobs.log == []
    assert again.by_step == first.by_step


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ("piece", {"inference": 1, "compare": 3, "solve": 1, "relabel": 3, "finish": 1}),
        ("output", {"compare": 3, "solve": 1, "relabel": 3, "finish": 1}),
        ("work", {"compare": 3, "solve": 1, "relabel": 3, "finish": 1}),
    ],
)
def test_what_was_taken_away_is_made_again_with_all_that_is_made_of_it(
    deployment: Deployment, tmp_path: Path, taken: str, expected: dict[str, int]
) -> None:
    jobs = FakeJobs(tmp_path / "jobs")
    drive(deployment, jobs)
    jobs.log.clear()
    plan = plan_deployment(deployment, RESOURCES)
    if taken == "piece":
        jobs.pieces.numbers.remove(7)  # which every other subvolume's comparison reads
    else:
        Path(plan.output).rmdir()
    if taken == "work":
        shutil.rmtree(plan.work)
    drive(deployment, jobs)
    assert Counter(kinds(jobs.log)) == expected


def test_another_driver_goes_on_where_one_was_killed(deployment: Deployment, tmp_path: Path) -> None:
    """Killed after so many jobs, with its jobs remembered: what is done is not done again."""

    class KilledError(BaseException):
        pass

    jobs = FakeJobs(tmp_path / "jobs")
    begun: list[str] = []
    submit = jobs.submit
    for after in (1, 3, 4, 6, 8, 10, 100):

        def submit_or_die(task: Task, after: int = after) -> object:
            if len(begun) >= after:
                raise KilledError
            begun.append(task.key)
            return submit(task)

        jobs.submit = submit_or_die  # type: ignore[method-assign, assignment]
        try:
            drive(deployment, jobs)
        except KilledError:
            continue
    assert len(begun) == len(set(begun))
    assert Counter(kinds(begun)) == STEPS


def test_a_failed_job_is_taken_apart_and_only_what_is_missing_is_done_again(
    deployment: Deployment, tmp_path: Path
) -> None:
    """The second job fails once, with one of its subvolumes done: the other gets a job of its own."""
    jobs = FakeJobs(tmp_path / "jobs")
    jobs.hook = failing(lambda task: task.parameters.get("numbers") == [2, 3], FailureKind.BAD_CONFIGURATION, 1)
    jobs.pieces.numbers.add(2)
    records = drive(deployment, jobs)
    assert Counter(kinds(jobs.log)) == {**STEPS, "alone": 1}
    assert [key for key in jobs.log if key.endswith("alone/000/000003")]
    assert kept_out(records.by_step["inference"]).subvolumes == 8
    # All pieces are there: the job that failed is not begun again.
    jobs.log.clear()
    again = drive(deployment, jobs)
    assert not segmenting_keys(jobs)
    assert kept_out(again.by_step["inference"]).subvolumes == 8


def test_a_subvolume_that_keeps_failing_is_named_and_the_others_are_done(
    deployment: Deployment, tmp_path: Path
) -> None:
    hook = failing(lambda task: 4 in (task.parameters.get("numbers") or []), FailureKind.KILLED)
    jobs = FakeJobs(tmp_path / "jobs", hook=hook)
    with pytest.raises(
        SubvolumesFailedError, match=r"1 of 8 subvolumes keep failing: subvolume 4 \(.*\[killed\]"
    ) as info:
        drive(deployment, jobs)
    assert info.value.exit_code == 1
    assert Counter(kinds(segmenting_keys(jobs))) == {"inference": 4, "alone": 1 + MAX_TRIES}
    assert jobs.pieces.numbers == set(range(8)) - {4}
    assert "solve" not in kinds(jobs.log)
    # The cause is gone: the same command does the job that failed, and the rest.
    jobs.hook = lambda task: None
    jobs.log.clear()
    drive(deployment, jobs)
    assert kinds(segmenting_keys(jobs)) == ["inference"]
    assert kinds(jobs.log)[-1] == "finish"


def test_a_wrong_configuration_is_not_tried_again(deployment: Deployment, tmp_path: Path) -> None:
    hook = failing(lambda task: task.parameters.get("numbers") == [1], FailureKind.DIVERGED)
    jobs = FakeJobs(tmp_path / "jobs", hook=hook)
    with pytest.raises(SubvolumesFailedError, match="subvolume 1"):
        drive(deployment, jobs, resources=replace(RESOURCES, subvolumes_per_job=1))
    assert Counter(kinds(segmenting_keys(jobs))) == {"inference": 8}


def test_what_fails_for_all_is_given_up_early(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "MAX_FAILED", 5)
    jobs = FakeJobs(tmp_path / "jobs", hook=failing(lambda task: True, FailureKind.BAD_CONFIGURATION))
    with pytest.raises(SubvolumesFailedError, match=r"6 of 8 subvolumes keep failing: subvolume 0 .*; and 1 more"):
        drive(deployment, jobs)
    assert kinds(jobs.log).count("alone") == 6


@pytest.mark.parametrize(("kind", "tries"), [(FailureKind.KILLED, MAX_TRIES), (FailureKind.BAD_CONFIGURATION, 1)])
@pytest.mark.parametrize("step", ["compare", "solve"])
def test_another_job_that_fails_ends_the_deployment(
    deployment: Deployment, tmp_path: Path, kind: FailureKind, tries: int, step: str
) -> None:
    jobs = FakeJobs(tmp_path / "jobs", hook=failing(lambda task: kinds([task.key]) == [step], kind))
    with pytest.raises(EnsembleError, match=rf"reconciliation \(job \d+, .*{step}.*\): made to fail"):
        drive(deployment, jobs)
    assert kinds(jobs.log).count(step) == tries
    jobs.hook = lambda task: None
    before = len(jobs.log)
    drive(deployment, jobs)
    assert kinds(segmenting_keys(jobs)) == ["inference"] * 4
    # What was taken away by hand is found where all of it is looked at again; a lost node has taken nothing away.
    again = ["solve", *["relabel"] * 3, "finish"]
    assert kinds(jobs.log[before:]) == (again if kind.transient and step == "solve" else ["compare"] * 3 + again)


def test_what_stands_is_told_by_the_jobs_and_not_by_the_clocks_of_nodes(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node has the time of some day: the same again does nothing, and what is new is taken account of."""
    hours = np.random.default_rng(3)
    monkeypatch.setattr(samples, "time", SimpleNamespace(time=lambda: 1e9 + float(hours.uniform(-1e5, 1e5))))
    jobs = FakeJobs(tmp_path / "jobs")
    drive(deployment, jobs)
    assert Counter(kinds(jobs.log)) == STEPS
    for piece in (7, 0, 7):
        jobs.log.clear()
        drive(deployment, jobs)
        assert jobs.log == []
        jobs.pieces.numbers.remove(piece)
        drive(deployment, jobs)
        done = Counter(kinds(jobs.log))
        assert (done["inference"], done["solve"], done["relabel"], done["finish"]) == (1, 1, 3, 1)
        assert done["compare"] == (3 if piece == 7 else 1), "those that read the piece"


def test_a_job_of_before_that_was_still_on_its_way_is_done_again(deployment: Deployment, tmp_path: Path) -> None:
    class LeftBehind(FakeJobs):
        """Follows, for one key, a job that an earlier driver has submitted before all others."""

        key = ""

        def submit(self, task: Task) -> Future[Outcome]:
            if task.key == self.key:
                self.key = ""
                self._ended[task.key] = Outcome(task.key, 0, fake_record([]))
            return super().submit(task)

    plan = plan_deployment(deployment, RESOURCES)
    jobs = LeftBehind(tmp_path / "jobs")
    jobs.key = DeploymentTasks(plan, deployment).reconcile("compare", 1).key
    drive(deployment, jobs)
    assert Counter(kinds(jobs.log)) == STEPS


def test_jobs_that_a_killed_driver_left_end_before_what_needs_the_lock_alone(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Killed while shares are relabelled, and a piece removed: nothing is submitted before those have ended."""
    jobs = FakeJobs(tmp_path / "jobs")
    drive(deployment, jobs)
    plan = plan_deployment(deployment, RESOURCES)
    tasks = DeploymentTasks(plan, deployment)
    left = [tasks.reconcile("relabel", index) for index in (1, 2)]
    gate, waiting = threading.Event(), {task.key for task in left}
    jobs.forget([*waiting, tasks.reconcile("finish").key])

    def hook(task: Task) -> FailureKind | None:
        if task.key not in waiting:
            return None
        assert gate.wait(30)
        waiting.discard(task.key)
        return FailureKind.BAD_CONFIGURATION if task == left[1] else None  # however it ends

    jobs.hook = hook
    jobs.log.clear()
    earlier = {task.key: jobs.submit(task) for task in left}
    jobs.pieces.numbers.remove(7)
    submit = jobs.submit

    def follow(task: Task) -> Future[Outcome]:
        future = earlier.pop(task.key, None)
        if future is None:
            assert not waiting, f"{task.key} was submitted too early"
            return submit(task)
        gate.set()
        return future

    jobs.submit = follow  # type: ignore[method-assign]
    Driver(plan, tasks, jobs, 1, pieces=jobs.pieces, unfinished=lambda: set(earlier)).run(False)
    assert kinds(jobs.log)[2:] == ["inference", *["compare"] * 3, "solve", *["relabel"] * 3, "finish"]


def test_jobs_by_other_rules_that_a_killed_driver_left_end_before_anything_is_submitted(
    deployment: Deployment, tmp_path: Path
) -> None:
    other = replace(deployment, links=LinkChoices(min_overlap_voxels=7))
    jobs = FakeJobs(tmp_path / "jobs")
    drive(deployment, jobs)
    theirs, ours = (DeploymentTasks(plan_deployment(given, RESOURCES), given) for given in (deployment, other))
    assert ours.reconcile("compare", 1).key == theirs.reconcile("compare", 1).key
    left, gate = theirs.reconcile("relabel", 2), threading.Event()
    jobs.forget([left.key])
    jobs.hook = lambda task: None if gate.wait(30) else FailureKind.HUNG
    earlier = jobs.submit(left)
    unfinished = {left.key, ours.reconcile("compare", 1).key, next(ours.segmenting()).task.key}
    jobs.log.clear()
    submit = jobs.submit

    def follow(task: Task) -> Future[Outcome]:
        if task.key == left.key:
            gate.set()
            return earlier
        assert earlier.done(), f"{task.key} was submitted too early"
        return submit(task)

    jobs.submit = follow  # type: ignore[method-assign]
    Driver(ours.plan, ours, jobs, 1, pieces=jobs.pieces, unfinished=lambda: unfinished).run(False)
    begun = Counter(kinds([key for key in jobs.log if key != left.key]))
    assert begun == {"solve": 1, "relabel": 3, "finish": 1}


@pytest.mark.parametrize("call", ["withdraw", "forget"])
def test_a_lost_service_does_not_hide_why_a_job_failed(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def lost(*_: object) -> None:
        raise ConnectionError("the service is gone")

    def hook(task: Task) -> FailureKind | None:
        if kinds([task.key]) != ["solve"]:
            return None
        monkeypatch.setattr(Window if call == "withdraw" else jobs, call, lost)
        return FailureKind.BAD_CONFIGURATION

    jobs = FakeJobs(tmp_path / "jobs", hook=hook)
    with pytest.raises(EnsembleError, match=r"reconciliation \(job \d+, .*solve.*\): made to fail") as info:
        drive(deployment, jobs)
    assert isinstance(info.value.__cause__, ConnectionError)


def test_a_volume_in_the_making_that_was_taken_away_is_made_again(deployment: Deployment, tmp_path: Path) -> None:
    jobs = FakeJobs(tmp_path / "jobs", hook=failing(lambda task: kinds([task.key]) == ["finish"], FailureKind.KILLED))
    with pytest.raises(EnsembleError, match="finish"):
        drive(deployment, jobs)
    jobs.hook = lambda task: None
    jobs.log.clear()
    (plan_deployment(deployment, RESOURCES).work / IN_THE_MAKING).rmdir()
    drive(deployment, jobs)
    assert Counter(kinds(jobs.log)) == {"compare": 3, "solve": 1, "relabel": 3, "finish": 1}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_more_jobs_are_under_way_than_the_window_holds_whatever_their_order(
    deployment: Deployment, tmp_path: Path, seed: int
) -> None:
    jobs = FakeJobs(tmp_path / "jobs", workers=2, seed=seed)
    records = drive(deployment, jobs, window=4, resources=replace(RESOURCES, subvolumes_per_job=1))
    assert 1 < jobs.most_under_way <= 4
    assert len(records.by_step["inference"]) == 8
    assert window_size(10_000) == 40_000


def test_each_step_tells_how_far_it_is(deployment: Deployment, tmp_path: Path) -> None:
    """The one job of a step by what it says itself; what is done already is not told again."""
    labelled = replace(deployment, labels=str(tmp_path / "labels.zarr"))
    told: list[str] = []

    def tell(progress: Progress) -> None:
        line = f"{progress.title}: {str(progress).partition(', ends')[0].partition(', predicted')[0]}"
        if line not in told:
            told.append(line)

    for shares, expected in (
        (2, ["reconciling: solving: half, 50 %", "reconciling: solving: done, 100 %"]),
        (1, ["reconciling: half, 50 %", "reconciling: done, 100 %"]),
    ):
        begun = replace(labelled, output=tmp_path / f"out-{shares}.zarr")
        jobs = FakeJobs(tmp_path / f"jobs-{shares}")

        def hook(task: Task, jobs: FakeJobs = jobs) -> None:
            if task.parameters.get("action") in ("solve", "all"):
                jobs.workdir(task.key).mkdir(parents=True)
                FileReporter(jobs.workdir(task.key))(1, 2, "half")
                time.sleep(0.7)

        jobs.hook = hook
        plan = plan_deployment(begun, replace(RESOURCES, reconciliation_jobs=shares))
        keep_plan(plan)
        told.clear()
        counts = []
        for _ in range(2):
            driver = Driver(plan, DeploymentTasks(plan, begun), jobs, 8, tell, 1, pieces=jobs.pieces)
            driver.run(evaluate=True)
            assert set(expected) <= set(told)
            assert ("reconciling: relabelling: 32.8 k of 32.8 k voxels" in told) == (shares > 1)
            assert told[-1] == "evaluating: done, 100 %"
            counts.append(len(told))
        assert counts[0] == counts[1]


def test_progress_tells_the_expected_end() -> None:
    now = [1000.0]
    progress = Progress("deploy", 10_000_000, clock=lambda: now[0])
    assert str(progress) == "0 of 10 M voxels"
    now[0] += 50
    progress.add(5_000_000, made_now=False)  # found from an earlier run: no pace
    assert progress.seconds_left is None
    now[0] += 100
    progress.add(1_000_000, made_now=True)
    assert progress.seconds_left == pytest.approx(400)
    end = time.strftime("%H:%M", time.localtime(now[0] + 400))
    assert str(progress) == f"6 M of 10 M voxels, ends about {end}"
    # Before the first job has ended, what was predicted tells it: for what an earlier run has left.
    expected = Progress("deploy", 100, "jobs", 600.0, clock=lambda: now[0])
    expected.add(50, made_now=False)
    now[0] += 100
    assert expected.seconds_left == pytest.approx(200)
    end = time.strftime("%H:%M", time.localtime(now[0] + 200))
    assert str(expected) == f"50 of 100 jobs, predicted to end about {end}"
    now[0] += 201
    assert str(expected) == "50 of 100 jobs"
    single = Progress("solve", 100, "%")
    for share, text in ((0.0, "0 %"), (0.57, "linking objects, 50 %"), (1.0, "linking objects, 100 %")):
        single.reach(share, "linking objects" if share else "")
        assert str(single) == text
    assert [voxels(n) for n in (950, 12_500, 3e9, 1.25e12)] == ["950", "12.5 k", "3 G", "1.25 T"]
    assert [duration(s) for s in (42, 190, 19_200)] == ["42 s", "3 min 10 s", "5 h 20 min"]
