"""Each kernel as one in the plane and one along z (as R(2+1)D of Tran et al., arXiv 1711.11248, does with time)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.ffn.variants.operations import Net, Operations
from apps.ffn.variants.stack import two_convolution_stack

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters


def separable(model: ModelParameters, operations: Operations, image: Net, seed: Net) -> Net:
    """The published network, where (kz, ky, kx) is (1, ky, kx), relu, (kz, 1, 1).

    A kernel of one voxel along z, or in the plane, is not taken apart.
    """
    depth, height, width_x = model.kernel

    def convolve(name: str, net: Net, width: int, rectified: bool) -> Net:
        if depth == 1 or (height, width_x) == (1, 1):
            return operations.convolution(name, net, width, model.kernel, rectified=rectified)
        net = operations.convolution(f"{name}_plane", net, width, (1, height, width_x), rectified=True)
        return operations.convolution(f"{name}_axial", net, width, (depth, 1, 1), rectified=rectified)

    return two_convolution_stack(model, operations, image, seed, convolve)
