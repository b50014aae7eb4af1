"""The operations that an architecture is written in.

A variant is one function over these.  Run on `apps.ffn.variants.trace` it gives names and shapes of the weights, the
arithmetic and the receptive field, without any framework; run on `apps.ffn.variants.keras_operations` it gives the
network.  So what is reported of a variant cannot differ from what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from apps.core.boxes import Triple

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters

POINT: Triple = (1, 1, 1)

# Convolutions that run in float32 in any precision, as sums of residual modules do: where the image comes in and where
# the logits go out.  They are a hundredth of the arithmetic, and half of what bfloat16 would cost in accuracy.
FLOAT32_LAYERS = frozenset({"conv0_a", "conv_lom"})

# What an operation takes and gives: features over a field of view, or over the grid of a coarse branch.
Net = Any


class Operations(Protocol):
    """All borders are zero-padded so that extents stay; `name` becomes the beginning of the names of the weights."""

    def concatenate(self, nets: list[Net]) -> Net:
        """The features of all, over one grid."""

    def convolution(
        self, name: str, net: Net, features: int, kernel: Triple, *, rectified: bool = False, stride: Triple = POINT
    ) -> Net:
        """Convolution with bias; `rectified`: normalised where the model says so, then max(x, 0).  A stride of 2 keeps
        every second position, the first and last among them (extents are odd)."""

    def depthwise(self, name: str, net: Net, kernel: Triple) -> Net:
        """Convolution of each feature by itself, without bias; `kernel` has 1 in z, or in both y and x."""

    def rectify(self, name: str, net: Net) -> Net:
        """max(x, 0) of a sum, normalised before where the model says so."""

    def add(self, one: Net, other: Net) -> Net:
        """Sum of two of the same features over one grid."""

    def enlarge(self, net: Net, factor: Triple) -> Net:
        """To the grid before a convolution of stride `factor`, by linear interpolation."""


# (model, operations, image, seed) -> update of the seed: one feature over the field of view.
Variant = Callable[["ModelParameters", Operations, Net, Net], Net]
