"""Residual modules with a bottleneck (He et al., arXiv 1512.03385): the kernel sees a fraction of the features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.ffn.variants.operations import POINT, Net, Operations
from apps.ffn.variants.stack import first_features, head, residual_modules

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters


def bottleneck(model: ModelParameters, operations: Operations, image: Net, seed: Net) -> Net:
    """conv0_a; then residual modules relu, 1x1x1 down, relu, kernel, relu, 1x1x1 up; then relu and 1x1x1."""

    def body(name: str, net: Net, width: int) -> Net:
        inner = model.whole_groups(width / model.bottleneck)
        net = operations.convolution(f"{name}_down", net, inner, POINT, rectified=True)
        net = operations.convolution(f"{name}_kernel", net, inner, model.kernel, rectified=True)
        return operations.convolution(f"{name}_up", net, width, POINT)

    net = first_features(model, operations, image, seed)
    net = residual_modules(model, operations, net, range(1, model.depth), model.width(0), body)
    return head(operations, net)
