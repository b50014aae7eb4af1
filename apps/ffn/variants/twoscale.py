"""Coarse context: half of the modules see the field of view at half the resolution; a kernel reaches twice as far.

The wider context joins the fine features by addition, as in feature pyramids (Lin et al., arXiv 1612.03144).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apps.ffn.variants.operations import POINT, Net, Operations
from apps.ffn.variants.stack import first_features, head, residual_modules

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters


def twoscale(model: ModelParameters, operations: Operations, image: Net, seed: Net) -> Net:
    """Module 0 fine; modules 1 to depth / 2 between a convolution of stride `coarse` and linear interpolation; their
    features added to those of module 0; the other modules fine."""

    def body(name: str, net: Net, width: int) -> Net:
        net = operations.convolution(f"{name}_a", net, width, model.kernel, rectified=True)
        return operations.convolution(f"{name}_b", net, width, model.kernel)

    first, last = model.width(0), model.depth // 2
    fine = first_features(model, operations, image, seed)
    fine = operations.convolution("conv0_b", fine, first, model.kernel)
    context = operations.rectify("coarse_down", fine)
    context = operations.convolution("coarse_down", context, first, model.kernel, stride=model.coarse)
    context = residual_modules(model, operations, context, range(1, last + 1), first, body)
    context = operations.convolution("coarse_up", operations.rectify("coarse_up", context), first, POINT)
    net = operations.add(fine, operations.enlarge(context, model.coarse))
    net = residual_modules(model, operations, net, range(last + 1, model.depth), first, body)
    return head(operations, net)
