"""What a search over trials can maximise: accuracy, accuracy and cost, or accuracy under a budget.

Each is a function of a trial's result as plain JSON (apps/trial/stage.py), or makes one; a search names it as its
`objective`.  Accuracy is the negative variation of information on the validation box.  Cost is what segmenting costs,
as it was measured when that box was segmented on a node like those that will be paid for.

    search = Search(..., objective=accuracy_and_cost, objectives=ACCURACY_AND_COST)
    search = Search(..., objective=accuracy_under_budget(voxels_in(1.0, (40, 6, 6)), node_hours=50_000))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from apps.core.errors import ParameterError

ACCURACY = ("accuracy",)
ACCURACY_AND_COST = ("accuracy", "economy")

# A network that fills less than this share of the labelled voxels counts as one that fills so much.
LEAST_FILLED = 1e-3


def accuracy(result: dict[str, Any]) -> float:
    """The negative variation of information, in bits; 0 is perfect."""
    return -float(result["scores"]["vi"])


def node_hours(result: dict[str, Any], voxels: float = 1e9, processes_per_node: int = 1) -> float:
    """Node-hours that segmenting so many voxels takes at the measured speed; infinite where none was measured.

    `processes_per_node`: inference processes that work side by side on a node, each as fast as the trial's one was.
    """
    speed = float(result["voxels_per_second"]) * processes_per_node
    return voxels / speed / 3600 if speed > 0 else math.inf


def accuracy_and_cost(result: dict[str, Any]) -> tuple[float, float]:
    """(accuracy in bits, economy: the negative decimal logarithm of the node-hours that a gigavoxel of object costs).

    The cost is that of the volume over the share of the labelled voxels that objects cover.  Otherwise a network that
    floods nothing would cost next to nothing, lie at the cheap end of every Pareto front, and be promoted for it.
    """
    filled = max(float(result["scores"]["filled_fraction"]), LEAST_FILLED)
    cost = node_hours(result) / filled
    # No speed is measured where there was no seed to start from: as dear as what fills nothing at a voxel a second.
    return accuracy(result), -math.log10(min(cost, 1e9 / 3600 / LEAST_FILLED))


def accuracy_under_budget(
    voxels: float, node_hours: float, *, bits_per_doubling: float = 1.0, processes_per_node: int = 1
) -> Callable[[dict[str, Any]], float]:
    """Accuracy of networks that segment `voxels` within `node_hours`; beyond, less by bits for every doubling.

    The penalty is 0 at the budget and grows steadily from there, so that a surrogate learns which way is cheaper.

    Args:
        voxels: of the volume to be segmented; see `analysis.voxels_in`.
        node_hours: what there is to spend.
        bits_per_doubling: what a network of twice the cost is worse by.
        processes_per_node: see `node_hours`.

    Raises ParameterError where one of them is not positive.
    """
    given = {
        "voxels": voxels,
        "node_hours": node_hours,
        "bits_per_doubling": bits_per_doubling,
        "processes_per_node": processes_per_node,
    }
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise ParameterError(f"{name} = {value}: expected a positive number")

    def objective(result: dict[str, Any]) -> float:
        # Logarithms of the two apart: a speed near 0 makes no infinite number.
        speed = max(float(result["voxels_per_second"]), 1.0) * processes_per_node
        over = math.log2(voxels / 3600 / node_hours) - math.log2(speed)
        return accuracy(result) - bits_per_doubling * max(0.0, over)

    return objective
