"""Rounding the weights of a trained network to a reduced precision, so that the errors cancel.

Rounded one by one, the weights of a kernel err in the same direction often enough to shift what a feature is on
average, and over the looks of an object such a shift adds up.  Here the error of each tap is carried to the next one
along a path through the kernel (error diffusion; R. W. Floyd and L. Steinberg, An adaptive algorithm for spatial
greyscale, 1976), so that the sum over the taps, which is all that a smooth neighbourhood shows of a kernel, is kept to
the last bit.  It costs nothing when the network runs.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.ffn.model import Precision, Weights
from apps.ffn.variants.operations import FLOAT32_LAYERS

Array = NDArray[np.float32]


def round_weights(weights: Weights, precision: Precision) -> Weights:
    """`weights` with all kernels that run in `precision` rounded to it, where they have several taps."""
    if precision == "float32":
        return weights
    return {name: diffused(value, precision) if _is_rounded(name, value) else value for name, value in weights.items()}


def _is_rounded(name: str, value: Array) -> bool:
    return value.ndim == 5 and value[..., 0, 0].size > 1 and name.partition("/")[0] not in FLOAT32_LAYERS


def diffused(kernel: Array, precision: Precision) -> Array:
    """A kernel (z, y, x, inputs, outputs) whose values `precision` can hold."""
    import ml_dtypes

    reduced = np.dtype(np.float16 if precision == "float16" else ml_dtypes.bfloat16)
    rounded = np.empty_like(kernel)
    carried = np.zeros(kernel.shape[3:], np.float64)
    for tap in snake((kernel.shape[0], kernel.shape[1], kernel.shape[2])):
        wanted = kernel[tap] + carried
        rounded[tap] = wanted.astype(reduced).astype(np.float32)
        carried = wanted - rounded[tap]
    return rounded


def snake(extent: Triple) -> list[Triple]:
    """All places zyx of a box, each next to the one before."""
    places: list[Triple] = []
    ys, xs = list(range(extent[1])), list(range(extent[2]))
    for z, y in itertools.product(range(extent[0]), range(extent[1])):
        row = ys[y] if z % 2 == 0 else ys[-1 - y]
        forward = len(places) // extent[2] % 2 == 0
        places += [(z, row, x) for x in (xs if forward else reversed(xs))]
    return places
