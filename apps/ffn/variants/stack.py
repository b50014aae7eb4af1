"""What the variants share: the published order of things, with one step of it left open.

Januszewski et al., arXiv 1611.00421, and google/ffn's `convstack_3d`: a first module without a residual, residual
modules that begin with a rectification, a last rectification, and a 1x1x1 convolution to the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from apps.ffn.variants.operations import POINT, Net, Operations

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters

# (name, rectified features, number of features wanted) -> features, not rectified yet.
Body = Callable[[str, Net, int], Net]
# (name, rectified features, number of features wanted, whether to rectify them) -> features.
Convolve = Callable[[str, Net, int, bool], Net]


def first_features(model: ModelParameters, operations: Operations, image: Net, seed: Net) -> Net:
    """`conv0_a`: from image and seed to the first features, rectified.  Two inputs make a full kernel cheap here."""
    net = operations.concatenate([image, seed])
    return operations.convolution("conv0_a", net, model.width(0), model.kernel, rectified=True)


def residual_modules(
    model: ModelParameters, operations: Operations, net: Net, modules: range, before: int, body: Body
) -> Net:
    """`modules` of the depth in turn, each added to what it got; `before`: the features of `net`.

    Where the width changes, a 1x1x1 convolution `conv{i}_skip` brings what is added to the new one.
    """
    for module in modules:
        name, width = f"conv{module}", model.width(module)
        update = body(name, operations.rectify(name, net), width)
        if width != before:
            net = operations.convolution(f"{name}_skip", net, width, POINT)
        net, before = operations.add(update, net), width
    return net


def head(operations: Operations, net: Net) -> Net:
    """`conv_lom`: the update of the logits of the object map."""
    return operations.convolution("conv_lom", operations.rectify("conv_lom", net), 1, POINT)


def two_convolution_stack(
    model: ModelParameters, operations: Operations, image: Net, seed: Net, convolve: Convolve
) -> Net:
    """The published network, with `convolve` in the place of each convolution but the first and last."""

    def body(name: str, net: Net, width: int) -> Net:
        inner = convolve(f"{name}_a", net, width, True)
        return convolve(f"{name}_b", inner, width, False)

    net = first_features(model, operations, image, seed)
    net = convolve("conv0_b", net, model.width(0), False)
    net = residual_modules(model, operations, net, range(1, model.depth), model.width(0), body)
    return head(operations, net)
