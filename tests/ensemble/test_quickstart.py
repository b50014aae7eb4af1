"""What the quickstart decides by itself: the bound on a model's cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ensemble.jobs import Outcome
from ensemble.quickstart import DEFAULT_COST_FACTOR, default_cost_bound
from ensemble.search import events
from ensemble.search.run import SearchRun
from tests.ensemble.search.simulated import prepared_campaign

GIGAVOXEL_HOUR = 1e9 / 3600  # voxels a second that make one node-hour a gigavoxel


def finished(run: SearchRun, *results: dict[str, Any]) -> None:
    """A search of which these are the trials' results."""
    run.folder.mkdir(parents=True)
    ledger = run.ledger()
    ledger.append([events.search_begun(["x"], ["vi"], [], 0, "source")])
    ledger.suggest([{"x": number} for number in range(len(results))])
    for number, result in enumerate(results):
        record = {"result": result, "cost": {"start": 1.0, "end": 2.0, "host": "h"}}
        outcome = Outcome("key", number, record)
        ledger.append([events.submitted(number), events.ended(number, 0, (-1.0,), outcome)])


def model(cost: float, filled: float, objects: int = 5) -> dict[str, Any]:
    scores = {"vi": 1.0, "filled_fraction": filled, "objects": objects}
    return {"voxels_per_second": GIGAVOXEL_HOUR / cost, "scores": scores}


@pytest.fixture
def run(tmp_path: Path) -> SearchRun:
    return SearchRun(prepared_campaign(tmp_path), "s")


def test_networks_that_find_next_to_nothing_do_not_set_the_bound(run: SearchRun) -> None:
    empty = [model(0.1, 0.01), model(0.2, 0.02), model(0.1, 0.0, objects=0)]
    finished(run, *empty, model(4.0, 0.6), model(5.0, 0.9), model(9.0, 0.5))
    assert default_cost_bound(run.campaign) == pytest.approx(DEFAULT_COST_FACTOR * 5.0)


def test_no_bound_without_a_measured_cost(run: SearchRun) -> None:
    finished(run, {"scores": {"vi": 1.0}}, {"scores": {"vi": 2.0}})
    assert default_cost_bound(run.campaign) is None
