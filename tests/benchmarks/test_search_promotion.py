"""The case `promotion`: what node-seconds count, and which trials are compared."""

from __future__ import annotations

from pathlib import Path

from benchmarks.search_promotion import EFFORT, negative_loss, node_seconds
from ensemble.jobs import Outcome
from ensemble.search import events
from ensemble.search.ledger import Ledger


def outcome(start: float, end: float) -> Outcome:
    return Outcome("key", 1, {"result": {}, "cost": {"start": start, "end": end}})


def test_node_seconds_are_of_all_rungs_by_the_trials_own_clocks(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "journal.jsonl")
    ledger.append([events.search_begun(["x"], ["objective"], [1, 3], 0, "source")])
    ledger.append([events.suggested(number, {"x": number}) for number in range(2)])
    ledger.append([events.submitted(0, 0, 1), events.submitted(1, 0, 1)])
    ledger.append(
        [events.reported(0, 0, (1.0,), outcome(10.0, 12.0)), events.reported(1, 0, (2.0,), outcome(10.0, 13.0))]
    )
    ledger.append([events.submitted(1, 1, 1)])
    ledger.append([events.ended(1, 1, (2.5,), outcome(20.0, 26.0))])
    assert node_seconds(ledger) == 2.0 + 3.0 + 6.0


def test_the_last_rung_is_the_full_budget_that_it_is_compared_with() -> None:
    for effort in EFFORT.values():
        assert list(effort.rungs) == sorted(set(effort.rungs)) and len(effort.rungs) > 1
        assert effort.trials > 1 and effort.seeds >= 1


def test_the_objective_is_the_held_out_loss_turned_round() -> None:
    assert negative_loss({"evaluation": {"metrics": {"loss": 0.25}}}) == -0.25
