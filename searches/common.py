"""What the shipped searches share: a configuration as a network, a request as a trial, pairs that a space leaves out.

A search file holds what is searched and why; this holds what would be the same in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apps.core.boxes import Triple
from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings
from apps.ffn.training_volumes import TrainingVolume
from apps.training.parameters import TrainingParameters
from apps.trial.stage import TrialParameters
from ensemble.search.definition import Configuration, TrialRequest


def trial(request: TrialRequest, inference: InferenceSettings, **training: Any) -> TrialParameters:
    """A trial on the campaign's data; `training`: fields of TrainingParameters, these before what the request says."""
    data = request.data
    fields: dict[str, Any] = {
        "volumes": (TrainingVolume(image=data.image, labels=data.labels, coordinates=data.coordinates),),
        "output": request.output,
        "image_mean": data.image_mean,
        "image_std": data.image_std,
        "seed": request.seed,
    }
    return TrialParameters(
        training=TrainingParameters(**fields | training), validation_box=data.validation_box, inference=inference
    )


def network(configuration: Configuration, fov: Triple, deltas: Triple) -> ModelParameters:
    """The network of a configuration, of a field of view and deltas zyx.

    `variant`, `depth`, `features`, `taper`, `normalisation`, `kernel` (extent in y and x), `kernel_z`, and where they
    are active `bottleneck` and `coarse_z`; what the space does not have keeps its default.
    """
    names = ("variant", "depth", "features", "taper", "normalisation", "bottleneck")
    given = {name: value for name, value in configuration.items() if name in names and value is not None}
    plane = configuration.get("kernel", 3)
    given["kernel"] = (configuration.get("kernel_z", plane), plane, plane)
    if configuration.get("coarse_z") is not None:
        given["coarse"] = (configuration["coarse_z"], 2, 2)
    return ModelParameters(fov=fov, deltas=deltas, **given)


def flat_fov(plane: int, flatness: int) -> Triple:
    """A field of view of `plane` voxels in y and x, and that over `flatness` in z, odd: (9, 33, 33) for 33 and 4."""
    return 2 * (plane // 2 // flatness) + 1, plane, plane


def flat_deltas(plane: int, flatness: int) -> Triple:
    """Deltas of `plane` voxels in y and x, and that over `flatness` in z, at least 1: (2, 8, 8) for 8 and 4."""
    return max(plane // flatness, 1), plane, plane


def forbid(space: Any, one: Any, other: Any, wrong: Callable[[Any, Any], bool]) -> None:
    """Leave out of a space (HpProblem) every pair of choices of two of its hyperparameters that is `wrong`.

    Both have choices (a list); a pair is forbidden where both are active.
    """
    from ConfigSpace import ForbiddenAndConjunction, ForbiddenEqualsClause

    for a in one.sequence:
        for b in other.sequence:
            if wrong(a, b):
                pair = ForbiddenEqualsClause(one, a), ForbiddenEqualsClause(other, b)
                space.add_forbidden_clause(ForbiddenAndConjunction(*pair))
