"""The published network: google/ffn's `convstack_3d`, with its names of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.ffn.variants.operations import Net, Operations
from apps.ffn.variants.stack import two_convolution_stack

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters


def convstack(model: ModelParameters, operations: Operations, image: Net, seed: Net) -> Net:
    """conv0_a, relu, conv0_b; residual modules relu, conv_a, relu, conv_b; then relu and a 1x1x1 convolution."""

    def convolve(name: str, net: Net, width: int, rectified: bool) -> Net:
        return operations.convolution(name, net, width, model.kernel, rectified=rectified)

    return two_convolution_stack(model, operations, image, seed, convolve)
