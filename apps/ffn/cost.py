"""What a variant costs and sees, from its description alone."""

from __future__ import annotations

import math

from apps.core.boxes import Triple
from apps.ffn.model import ModelParameters, weight_shapes
from apps.ffn.variants.trace import trace


def parameter_count(model: ModelParameters) -> int:
    """Number of trainable numbers (638,433 for the published network)."""
    return sum(math.prod(shape) for shape in weight_shapes(model).values())


def flop_per_fov(model: ModelParameters) -> float:
    """Floating-point operations of one forward pass over one field of view: those of the kernels, a multiply-add
    counted as two."""
    return 2.0 * sum(layer.multiply_adds() for layer in trace(model).layers)


def flop_per_voxel_gained(model: ModelParameters) -> float:
    """Operations per voxel that a step gains at most: one step of the field of view to each axis' next place."""
    return flop_per_fov(model) / math.prod(max(step, 1) for step in model.deltas)


def receptive_field(model: ModelParameters) -> Triple:
    """Extent zyx in voxels of the input that the centre of the output depends on, as if there were more than the field
    of view of it.  Group normalisation takes its statistics over all of the field of view, so that is the least then.
    """
    spans = [high - low + 1 for low, high in trace(model).needed(model.margin)]
    if model.normalisation == "group":
        spans = [max(span, extent) for span, extent in zip(spans, model.fov, strict=True)]
    return spans[0], spans[1], spans[2]
