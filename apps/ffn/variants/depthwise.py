"""Depthwise separable kernels: space by each feature by itself, then features by 1x1x1.

Howard et al., arXiv 1704.04861.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.ffn.variants.operations import POINT, Net, Operations
from apps.ffn.variants.stack import two_convolution_stack

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters


def depthwise(model: ModelParameters, operations: Operations, image: Net, seed: Net) -> Net:
    """The published network, where a kernel is depthwise (1, ky, kx), depthwise (kz, 1, 1), then 1x1x1 with bias.

    A part of the kernel of one voxel is left out.
    """
    depth, height, width_x = model.kernel

    def convolve(name: str, net: Net, width: int, rectified: bool) -> Net:
        if (height, width_x) != (1, 1):
            net = operations.depthwise(f"{name}_plane", net, (1, height, width_x))
        if depth != 1:
            net = operations.depthwise(f"{name}_axial", net, (depth, 1, 1))
        return operations.convolution(f"{name}_point", net, width, POINT, rectified=rectified)

    return two_convolution_stack(model, operations, image, seed, convolve)
