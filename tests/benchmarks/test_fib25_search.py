"""What benchmarks.fib25_search says of failures: on journals, jobs and event files made by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import FailureKind
from apps.ffn.segmenter import check_extent
from apps.trial.stage import TrialParameters
from benchmarks.fib25_evidence import (
    Session,
    fates,
    full_node_seconds,
    lost,
    recorded_ends,
    repeated,
    sessions_of,
    spent_node_seconds,
)
from benchmarks.fib25_faults import FAULTS, SPOIL, filled_accuracy, spoilt
from benchmarks.fib25_injector import Attempt, Failure, checkpoint_step
from benchmarks.fib25_report import side_by_side
from ensemble.campaigns import CampaignData
from ensemble.jobs import Outcome
from ensemble.preparation import VALIDATION_SHAPE
from ensemble.search import events
from ensemble.search.definition import TrialRequest
from ensemble.search.keys import trial_key
from ensemble.search.ledger import Ledger, TrialState
from searches.ffn_variants import BATCH, search

CONFIGURATION = {"variant": "convstack", "depth": 2, "features": 8, "learning_rate": 1e-3}


def request(number: int, folder: Path) -> TrialRequest:
    box = Box.of((0, 0, 0), (32, 32, 32))
    data = CampaignData(
        image="image.zarr",
        labels="labels.zarr",
        coordinates="coordinates.npz",
        image_mean=128.0,
        image_std=33.0,
        voxel_size_nm=(10.0, 10.0, 10.0),
        data_hash="",
        training_box=box,
        validation_box=box,
        test_box=box,
        fov=(13, 13, 13),
        deltas=(3, 3, 3),
        trivial_answers={},
    )
    return TrialRequest(dict(CONFIGURATION), data, str(folder / f"{number:04d}"), seed=0, budget=200)


def spoilt_parameters(kind: FailureKind, folder: Path) -> TrialParameters:
    number = next(number for number, fault in FAULTS.items() if fault is kind)
    made = spoilt(search.parameters)(request(number, folder))
    assert isinstance(made, TrialParameters)
    return made


class TestFaults:
    def test_other_trials_are_those_of_the_shipped_search(self, tmp_path: Path) -> None:
        assert {0, 3} & set(FAULTS) == set()
        assert spoilt(search.parameters)(request(0, tmp_path)) == search.parameters(request(0, tmp_path))

    def test_what_finds_nothing_is_worse_than_what_finds_much_of_it_wrongly(self) -> None:
        def result(vi: float, filled: float) -> dict[str, Any]:
            return {"scores": {"vi": vi, "filled_fraction": filled}}

        assert filled_accuracy(result(2.0, 0.0)) == -6.0
        assert filled_accuracy(result(2.0, 0.0)) < filled_accuracy(result(3.5, 0.6)) < filled_accuracy(result(2.0, 1.0))

    def test_each_is_of_another_kind(self) -> None:
        assert set(SPOIL) | {FailureKind.BUG} == set(FAULTS.values())
        assert len(FAULTS) == len(set(FAULTS.values()))

    def test_a_network_is_larger_than_any_validation_box(self, tmp_path: Path) -> None:
        made = spoilt_parameters(FailureKind.BAD_CONFIGURATION, tmp_path)
        assert made.training.model is not None
        with_context = tuple(n + 2 * more for n, more in zip(VALIDATION_SHAPE, made.context, strict=True))
        with pytest.raises(Exception, match="smaller than the field of view"):
            check_extent(with_context, made.training.model, "the box")

    def test_a_bug_is_no_error_of_the_user(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError):
            spoilt_parameters(FailureKind.BUG, tmp_path)

    def test_what_hangs_has_an_image_that_is_never_there(self, tmp_path: Path) -> None:
        for _ in range(2):  # the next driver makes the parameters again
            made = spoilt_parameters(FailureKind.HUNG, tmp_path)
        (volume,) = made.training.volumes
        assert (Path(volume.image) / "zarr.json").is_fifo()

    def test_what_diverges_has_no_bound_on_its_gradient(self, tmp_path: Path) -> None:
        made = spoilt_parameters(FailureKind.DIVERGED, tmp_path)
        assert made.training.clip is None and made.training.learning_rate == 10.0


def record(start: float, end: float, steps: int = 200) -> dict[str, Any]:
    training = {"steps": steps, "fovs_per_second": 100.0}
    return {"result": {"training": training}, "cost": {"start": start, "end": end}}


def outcome(
    key: str, record: dict[str, Any] | None = None, failure: FailureKind | None = None, message: str = ""
) -> Outcome:
    return Outcome(key, 1, record, failure, message)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Trial 0 was killed at rung 1 and went on; 1 waits; 2 was refused; 3 is the machine's victim for good."""
    made = Ledger(tmp_path / "journal.jsonl")
    made.append([events.search_begun(["x"], ["accuracy"], [200, 600], 0, "source")])
    made.append([events.suggested(number, {"x": number}) for number in range(4)])
    made.append([events.submitted(number) for number in range(4)])
    first = trial_key("s", 0, 0, 1)
    made.append([events.reported(0, 0, (-3.0,), outcome(first, record(0.0, 10.0)))])
    made.append([events.reported(1, 0, (-4.0,), outcome(trial_key("s", 1), record(0.0, 20.0)))])
    made.append([events.ended(2, 0, None, outcome(trial_key("s", 2), None, FailureKind.BAD_CONFIGURATION, "no"))])
    made.append([events.ended(3, 0, None, outcome(trial_key("s", 3), None, FailureKind.KILLED, "gone"))])
    made.append([events.submitted(0, 1, 1)])
    made.append([events.attempt_failed(0, 1, outcome(trial_key("s", 0, 1, 1), None, FailureKind.KILLED, "gone"), 0.0)])
    made.append([events.submitted(0, 1, 2)])
    made.append([events.ended(0, 1, (-2.0,), outcome(trial_key("s", 0, 1, 2), record(50.0, 65.0, 600)))])
    return made


def lines(ledger: Ledger, tmp_path: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]


class TestEvidence:
    def test_ends_are_those_of_the_journal_and_those_that_balsam_went_on_after(
        self, ledger: Ledger, tmp_path: Path
    ) -> None:
        jobs = [
            {"id": 5, "tags": {"task": trial_key("s", 1)}, "data": {"interruptions": ["walltime", "lost_node"]}},
            {"id": 6, "tags": {"task": trial_key("s", 0)}, "data": None},
        ]
        times = [datetime.fromtimestamp(second, UTC).replace(tzinfo=None) for second in (100, 200)]
        timeouts = [SimpleNamespace(id=n, job_id=5, timestamp=time) for n, time in enumerate(times)]
        ends = recorded_ends(lines(ledger, tmp_path), jobs, timeouts[::-1])
        assert [(end.kind.value, end.of, end.time) for end in ends[:2]] == [
            ("walltime", Attempt(1, 0, 1), 100.0),
            ("lost_node", Attempt(1, 0, 1), 200.0),
        ]
        assert {(end.kind.value, end.of) for end in ends[2:]} == {
            ("bad_configuration", Attempt(2, 0, 1)),
            ("killed", Attempt(3, 0, 1)),
            ("killed", Attempt(0, 1, 1)),
        }

    def test_a_killed_trial_went_on_from_its_checkpoint(self, ledger: Ledger, tmp_path: Path) -> None:
        ends = recorded_ends(lines(ledger, tmp_path), [], [])
        killed = Failure(FailureKind.KILLED, Attempt(0, 1, 1), 20.0)
        sessions = {0: [Session(1.0, 0), Session(12.0, 200), Session(30.0, 300)]}
        found = fates(ledger.trials, ends, [killed], lambda n: sessions.get(n, []), lambda n, time: 300)
        fate = next(one for one in found if one.kind is FailureKind.KILLED)
        refused = next(one for one in found if one.of.trial == 2)
        assert fate.recorded == (FailureKind.KILLED,) and fate.went_on
        assert (fate.step, fate.resumed, fate.state, fate.rungs) == (300, 300, TrialState.DONE, 2)
        assert "recorded as killed when its checkpoint was of step 300; went on from step 300" in fate.sentence()
        assert refused.of.trial == 2 and refused.told and not refused.went_on
        assert refused.sentence() == "recorded as bad_configuration, told to the optimiser, not retried; FAILED (no)"

    def test_a_trial_that_began_anew_did_not_go_on(self, ledger: Ledger) -> None:
        killed = Failure(FailureKind.KILLED, Attempt(0, 1, 1), 20.0)
        found = fates(ledger.trials, [], [killed], lambda n: [Session(30.0, 200)], lambda n, time: 300)
        fate = next(one for one in found if one.kind is FailureKind.KILLED)
        assert not fate.went_on and fate.recorded == ()

    def test_wall_times_are_found_by_what_balsam_says(self, ledger: Ledger) -> None:
        ends = [Failure(FailureKind.WALLTIME, Attempt(number, 0, 1), 5.0) for number in (0, 2)]
        found = fates(ledger.trials, ends, [], lambda n: [], lambda n, time: 100)
        (fate,) = [fate for fate in found if fate.kind is FailureKind.WALLTIME]  # trial 2 fails in any case
        assert fate.of.trial == 0 and fate.went_on and "had trained to its end" in fate.sentence()

    def test_lost_is_what_has_not_ended_and_what_the_machine_ended(self, ledger: Ledger) -> None:
        assert lost(ledger.trials) == [1, 3]

    def test_repetitions_are_of_configurations_ends_and_rungs(self, ledger: Ledger, tmp_path: Path) -> None:
        journal = lines(ledger, tmp_path)
        assert repeated(journal) == 0
        again = [{"event": "suggested", "configuration": {"x": 1}}, journal[-1]]
        assert repeated(journal + again) == 3  # the configuration, the end, and the rung's result

    def test_node_seconds(self, ledger: Ledger) -> None:
        """8 fields of view at 100 a second are 0.08 s a step; trial 0's last job took 15 s for 400 of its 600 steps."""
        assert spent_node_seconds(ledger.trials) == 10.0 + 20.0 + 15.0
        assert full_node_seconds(ledger.trials, 600, BATCH) == pytest.approx(15 + 200 * 0.08 + 20 + 400 * 0.08)

    def test_every_start_of_a_training_is_known(self, tmp_path: Path) -> None:
        from apps.ffn.summaries import EventFile

        for step in (0, 0, 200, 200, 400):  # the first and the third came to no checkpoint of their own
            written = EventFile(tmp_path / "events", step)
            for later in (step + 20, step + 40):
                written.add(later, {"loss": 0.5})
            written.close()
        found = sessions_of(tmp_path)
        assert [session.step for session in found] == [0, 0, 200, 200, 400]
        assert found == sorted(found, key=lambda session: session.time)
        assert sessions_of(tmp_path / "elsewhere") == []


def test_attempts_are_read_from_keys_and_work_directories() -> None:
    assert Attempt.of("/site/data/fib25-ab/" + trial_key("s", 12, 2, 3)) == Attempt(12, 2, 3)
    assert Attempt.of("data/partition") is None


def test_a_folder_without_a_checkpoint_is_at_step_0(tmp_path: Path) -> None:
    assert checkpoint_step(tmp_path) == 0
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.json").write_text('{"step": 300}')
    assert checkpoint_step(tmp_path) == 300


def test_panels_stand_side_by_side() -> None:
    black = np.zeros((4, 5, 3), np.uint8)
    made = side_by_side([black, black])
    assert made.shape == (12, 36, 3)
    assert (made[:, 15:21] == 255).all() and (made[:, :15] == 0).all() and (made[:, 21:] == 0).all()
