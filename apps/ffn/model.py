"""The description of a flood-filling network: architecture, field of view, names and shapes of its weights.

Nothing here needs TensorFlow; `apps.ffn.network` turns a description and weights into a network that runs.
Architecture and names: Januszewski et al., arXiv 1611.00421 and google/ffn (`convstack_3d`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters

Weights = dict[str, NDArray[np.float32]]
Shape = tuple[int, ...]

KERNEL: Triple = (3, 3, 3)


class ModelParameters(Parameters, frozen=True, kw_only=True):
    """One FFN variant.  All triples are zyx, in voxels."""

    variant: Annotated[Literal["convstack"], Meta(description="architecture, one of apps.ffn.model.VARIANTS")] = (
        "convstack"
    )
    depth: Annotated[int, Meta(ge=1, le=64, description="convolution modules; google/ffn published 12")] = 4
    features: Annotated[int, Meta(ge=1, le=1024, description="channels of every convolution; published: 32")] = 16
    fov: Annotated[Triple, Meta(description="field of view zyx, odd; published: 33, 33, 33")] = (17, 17, 17)
    deltas: Annotated[Triple, Meta(description="step of the field of view zyx; published: 8, 8, 8")] = (4, 4, 4)

    def check(self) -> None:
        if any(extent < 3 or extent % 2 == 0 for extent in self.fov):
            raise ParameterError(f"fov {self.fov}: expected odd extents of at least 3, so that it has a centre voxel")
        if any(not 0 <= step <= extent // 2 for step, extent in zip(self.deltas, self.fov, strict=True)):
            raise ParameterError(f"deltas {self.deltas}: expected 0 to half the field of view {self.fov} on each axis")
        if max(self.deltas) == 0:
            raise ParameterError("deltas 0, 0, 0: the field of view could never move; expected one positive step")

    @property
    def canvas(self) -> Triple:
        """Extent zyx of a training canvas: the field of view and one step to either side."""
        return cast(Triple, tuple(f + 2 * d for f, d in zip(self.fov, self.deltas, strict=True)))

    @property
    def margin(self) -> Triple:
        """Half the field of view, zyx: no position closer to a border can be its centre."""
        return cast(Triple, tuple(f // 2 for f in self.fov))


def _convstack_shapes(model: ModelParameters) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}

    def convolution(name: str, kernel: Triple, inputs: int, outputs: int) -> None:
        shapes[f"{name}/weights"] = (*kernel, inputs, outputs)
        shapes[f"{name}/biases"] = (outputs,)

    for module in range(model.depth):
        convolution(f"conv{module}_a", KERNEL, model.features if module else 2, model.features)
        convolution(f"conv{module}_b", KERNEL, model.features, model.features)
    convolution("conv_lom", (1, 1, 1), model.features, 1)
    return shapes


# Variant -> names and shapes of its weights, in the order of computation.  To add a variant: its shapes here, its
# computation in apps.ffn.network.VARIANTS, its name in `ModelParameters.variant`; the tests run over all of them.
VARIANTS: dict[str, Callable[[ModelParameters], dict[str, Shape]]] = {"convstack": _convstack_shapes}


def weight_shapes(model: ModelParameters) -> dict[str, Shape]:
    """Names (google/ffn's, without `seed_update/`) and shapes; kernels are (z, y, x, inputs, outputs)."""
    return VARIANTS[model.variant](model)


def initial_weights(model: ModelParameters, seed: int) -> Weights:
    """Glorot-uniform kernels and zero biases, float32, the same for the same seed on any machine."""
    rng = np.random.default_rng([seed, 0])
    weights: Weights = {}
    for name, shape in weight_shapes(model).items():
        if len(shape) == 1:
            weights[name] = np.zeros(shape, np.float32)
            continue
        taps = int(np.prod(shape[:3]))
        limit = np.sqrt(6.0 / (taps * (shape[3] + shape[4])))
        weights[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
    return weights


def check_weights(model: ModelParameters, weights: Mapping[str, NDArray[Any]], where: str) -> Weights:
    """`weights` as float32 in the order of computation.

    Raises DataError that names `where` when one is missing, of another shape, not finite, or unknown to the model.
    """
    expected = weight_shapes(model)
    for name in weights:
        if name not in expected:
            raise DataError(f"{where}: holds the weight {name!r}, which a {_word(model)} does not have")
    checked: Weights = {}
    for name, shape in expected.items():
        if name not in weights:
            raise DataError(f"{where}: has no weight {name!r}, which a {_word(model)} needs")
        if weights[name].shape != shape:
            raise DataError(
                f"{where}: weight {name!r} has the shape {weights[name].shape}; a {_word(model)} has {shape}"
            )
        checked[name] = np.asarray(weights[name], np.float32)
        if not np.isfinite(checked[name]).all():
            raise DataError(f"{where}: weight {name!r} holds NaN or infinite values; take an earlier checkpoint")
    return checked


def _word(model: ModelParameters) -> str:
    return f"{model.variant} of depth {model.depth} with {model.features} features"
