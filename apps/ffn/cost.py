"""What a variant costs: parameters and floating-point operations, from its shapes alone."""

from __future__ import annotations

import math

from apps.ffn.model import ModelParameters, weight_shapes


def parameter_count(model: ModelParameters) -> int:
    """Number of trainable numbers (638,433 for the published network)."""
    return sum(math.prod(shape) for shape in weight_shapes(model).values())


def flop_per_fov(model: ModelParameters) -> float:
    """Floating-point operations of one forward pass over one field of view, a multiply-add counted as two."""
    kernels = sum(math.prod(shape) for shape in weight_shapes(model).values() if len(shape) > 1)
    return 2.0 * math.prod(model.fov) * kernels


def training_flop(model: ModelParameters, fovs: int) -> float:
    """Operations of `fovs` training steps of one field of view: backward costs twice the forward pass."""
    return 3.0 * flop_per_fov(model) * fovs
