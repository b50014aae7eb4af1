"""The description of a flood-filling network: architecture, field of view, names and shapes of its weights.

Nothing here needs TensorFlow; `apps.ffn.network` turns a description and weights into a network that runs.
Architecture and names: Januszewski et al., arXiv 1611.00421 and google/ffn (`convstack_3d`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.ffn.variants import VARIANTS
from apps.ffn.variants.trace import Shape, trace

Weights = dict[str, NDArray[np.float32]]

# Of the computation; weights, statistics and the logits stay float32.
Precision = Literal["float32", "bfloat16", "float16"]


class ModelParameters(Parameters, frozen=True, kw_only=True):
    """One FFN variant.  All triples are zyx, in voxels."""

    variant: Annotated[
        str,
        Meta(
            description="architecture, one of apps.ffn.variants.VARIANTS",
            extra_json_schema={"enum": list(VARIANTS)},
        ),
    ] = "convstack"
    depth: Annotated[int, Meta(ge=1, le=64, description="convolution modules; google/ffn published 12")] = 4
    features: Annotated[int, Meta(ge=1, le=1024, description="channels of the first module; published: 32")] = 16
    taper: Annotated[
        float,
        Meta(ge=0.01, le=100, description="channels of the last module over the first, geometric in between; 1: equal"),
    ] = 1.0
    kernel: Annotated[Triple, Meta(description="extent of the convolutions zyx, odd; published: 3, 3, 3")] = (3, 3, 3)
    bottleneck: Annotated[
        int, Meta(ge=1, le=64, description="variant bottleneck: channels outside over channels of the kernel")
    ] = 4
    coarse: Annotated[
        Triple, Meta(description="variant twoscale: its coarse branch's step zyx, each 1 or 2; 1, 2, 2 is in plane")
    ] = (2, 2, 2)
    normalisation: Annotated[
        Literal["none", "group"], Meta(description="of features, before they are rectified; published: none")
    ] = "none"
    groups: Annotated[int, Meta(ge=1, le=1024, description="of channels, where normalisation is group")] = 4
    fov: Annotated[Triple, Meta(description="field of view zyx, odd; published: 33, 33, 33")] = (17, 17, 17)
    deltas: Annotated[Triple, Meta(description="step of the field of view zyx; published: 8, 8, 8")] = (4, 4, 4)

    def check(self) -> None:
        if self.variant not in VARIANTS:
            raise ParameterError(f"variant {self.variant!r}: is not known; expected one of {', '.join(VARIANTS)}")
        if any(extent < 3 or extent % 2 == 0 for extent in self.fov):
            raise ParameterError(f"fov {self.fov}: expected odd extents of at least 3, so that it has a centre voxel")
        if any(not 0 <= step <= extent // 2 for step, extent in zip(self.deltas, self.fov, strict=True)):
            raise ParameterError(f"deltas {self.deltas}: expected 0 to half the field of view {self.fov} on each axis")
        if max(self.deltas) == 0:
            raise ParameterError("deltas 0, 0, 0: the field of view could never move; expected one positive step")
        if any(extent < 1 or extent % 2 == 0 for extent in self.kernel) or max(self.kernel) == 1:
            raise ParameterError(f"kernel {self.kernel}: expected odd extents, one of them at least 3")
        if any(extent > seen for extent, seen in zip(self.kernel, self.fov, strict=True)):
            raise ParameterError(f"kernel {self.kernel}: is larger than the field of view {self.fov}")
        if not set(self.coarse) <= {1, 2} or max(self.coarse) == 1:
            raise ParameterError(f"coarse {self.coarse}: expected 1 or 2 on each axis, 2 on one of them at least")
        if self.normalisation == "group" and self.features % self.groups:
            raise ParameterError(f"groups {self.groups}: do not divide the {self.features} features")

    def width(self, module: int) -> int:
        """Channels of a module, 0 to depth - 1."""
        return self.whole_groups(self.features * self.taper ** (module / max(self.depth - 1, 1)))

    def whole_groups(self, channels: float) -> int:
        """The nearest number of channels that the network can have: at least 1, and whole groups where it has some."""
        size = self.groups if self.normalisation == "group" else 1
        return max(round(channels / size), 1) * size

    @property
    def canvas(self) -> Triple:
        """Extent zyx of a training canvas: the field of view and one step to either side."""
        return cast(Triple, tuple(f + 2 * d for f, d in zip(self.fov, self.deltas, strict=True)))

    @property
    def margin(self) -> Triple:
        """Half the field of view, zyx: no position closer to a border can be its centre."""
        return cast(Triple, tuple(f // 2 for f in self.fov))


def weight_shapes(model: ModelParameters) -> dict[str, Shape]:
    """Names (convstack's are google/ffn's, without `seed_update/`) and shapes, in the order of computation.

    Kernels are (z, y, x, inputs, outputs); a depthwise kernel has one output an input.
    """
    return {name: shape for layer in trace(model).layers for name, shape in layer.shapes().items()}


def initial_weights(model: ModelParameters, seed: int) -> Weights:
    """Glorot-uniform kernels, zero biases, normalisations that change no scale; float32, the same for the same seed on
    any machine."""
    rng = np.random.default_rng([seed, 0])
    weights: Weights = {}
    for layer in trace(model).layers:
        for name, shape in layer.shapes().items():
            if len(shape) == 1:
                weights[name] = np.full(shape, 1 if name.endswith("/gamma") else 0, np.float32)
                continue
            # Numbers that go into one output and come of one input: of depthwise kernels, the window alone.
            fans = 2 if layer.kind == "depthwise" else layer.inputs + layer.outputs
            limit = np.sqrt(6.0 / (math.prod(layer.kernel) * fans))
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
