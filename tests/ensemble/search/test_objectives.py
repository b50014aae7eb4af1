"""What a search maximises, on results made by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from apps.core.errors import ParameterError
from ensemble.search.objectives import (
    ACCURACY_AND_COST,
    accuracy,
    accuracy_and_cost,
    accuracy_under_budget,
    node_hours,
)


def result(vi: float = 2.0, filled: float = 0.5, speed: float = 1e6) -> dict[str, Any]:
    return {"scores": {"vi": vi, "filled_fraction": filled}, "voxels_per_second": speed}


def test_accuracy_is_the_negative_variation_of_information() -> None:
    assert accuracy(result(vi=1.25)) == -1.25


def test_node_hours_follow_from_the_measured_speed() -> None:
    assert node_hours(result(speed=1e6)) == pytest.approx(1000 / 3600)
    assert node_hours(result(speed=1e6), voxels=3.6e9) == pytest.approx(1.0)
    assert node_hours(result(speed=1e6), voxels=3.6e9, processes_per_node=4) == pytest.approx(0.25)
    assert node_hours(result(speed=0.0)) == math.inf


def test_cost_is_that_of_what_is_filled() -> None:
    """1e9 voxels at 1e9 / 3600 a second are a node-hour: 1 for all filled, 10 for a tenth."""
    hour = 1e9 / 3600
    assert accuracy_and_cost(result(filled=1.0, speed=hour)) == pytest.approx((-2.0, 0.0))
    assert accuracy_and_cost(result(filled=0.1, speed=hour)) == pytest.approx((-2.0, -1.0))
    assert len(accuracy_and_cost(result())) == len(ACCURACY_AND_COST)


def test_a_network_that_does_nothing_is_no_cheap_one() -> None:
    honest = accuracy_and_cost(result(filled=0.8, speed=4e4))
    idle = accuracy_and_cost(result(filled=0.0, speed=1e6))
    assert idle[1] < honest[1]
    assert math.isfinite(accuracy_and_cost(result(filled=0.0, speed=0.0))[1])
    assert accuracy_and_cost(result(filled=0.0, speed=0.0))[1] < idle[1]


def test_beyond_the_budget_every_doubling_costs_a_bit() -> None:
    objective = accuracy_under_budget(3.6e9, node_hours=1.0)  # a million voxels a second are needed
    assert objective(result(speed=2e6)) == objective(result(speed=1e6)) == -2.0
    assert objective(result(speed=5e5)) == pytest.approx(-3.0)
    assert objective(result(speed=2.5e5)) == pytest.approx(-4.0)
    assert objective(result(speed=0.0)) == pytest.approx(-2.0 - math.log2(1e6))
    steep = accuracy_under_budget(3.6e9, 1.0, bits_per_doubling=3.0, processes_per_node=2)
    assert steep(result(speed=5e5)) == pytest.approx(-2.0)
    assert steep(result(speed=2.5e5)) == pytest.approx(-5.0)


@pytest.mark.parametrize("fields", [{"voxels": 0}, {"node_hours": -1.0}, {"node_hours": math.nan}])
def test_an_impossible_budget_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=r"(voxels|node_hours) = .*expected a positive number"):
        accuracy_under_budget(**{"voxels": 1e9, "node_hours": 1.0, **fields})
