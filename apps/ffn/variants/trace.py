"""What a variant consists of, found by running it on operations that compute nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from apps.core.boxes import Triple
from apps.ffn.variants.operations import POINT

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters

Shape = tuple[int, ...]
Interval = tuple[int, int]  # first and last position along one axis, both in it


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: beginning of the names of its weights.
        kernel: extent zyx (1, 1, 1 for a normalisation).
        inputs, outputs: features.
        extent: the grid zyx that it computes: the field of view, or that of a coarse branch.
    """

    name: str
    kind: Literal["convolution", "depthwise", "normalisation"]
    kernel: Triple
    inputs: int
    outputs: int
    extent: Triple

    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of its weights; kernels are (z, y, x, inputs, outputs), outputs per input if depthwise."""
        if self.kind == "normalisation":
            return {f"{self.name}/gamma": (self.outputs,), f"{self.name}/beta": (self.outputs,)}
        if self.kind == "depthwise":
            return {f"{self.name}/weights": (*self.kernel, self.inputs, 1)}
        return {
            f"{self.name}/weights": (*self.kernel, self.inputs, self.outputs),
            f"{self.name}/biases": (self.outputs,),
        }

    def multiply_adds(self) -> int:
        """Of its kernel over its grid, those with the zeros around the border among them; a normalisation has none."""
        if self.kind == "normalisation":
            return 0
        pairs = self.inputs * (self.outputs if self.kind == "convolution" else 1)
        return math.prod(self.extent) * math.prod(self.kernel) * pairs


@dataclass(frozen=True)
class _Node:
    """One value: what it is made of, and which positions of those along an axis an interval of its own depends on."""

    number: int
    features: int
    extent: Triple
    inputs: tuple[_Node, ...] = ()
    needs: Callable[[int, Interval], Interval] = lambda axis, interval: interval


class Trace:
    """`Operations` that record layers and dependencies.  Weights appear in the order of computation."""

    def __init__(self, model: ModelParameters) -> None:
        self.layers: list[Layer] = []
        self._model = model
        self._nodes: list[_Node] = []

    def input(self) -> _Node:
        """The image or the seed over the field of view."""
        return self._node(1, self._model.fov)

    def concatenate(self, nets: list[_Node]) -> _Node:
        return self._node(sum(net.features for net in nets), nets[0].extent, tuple(nets))

    def convolution(
        self,
        name: str,
        net: _Node,
        features: int,
        kernel: Triple,
        *,
        rectified: bool = False,
        stride: Triple = POINT,
    ) -> _Node:
        z, y, x = (-(-extent // step) for extent, step in zip(net.extent, stride, strict=True))
        self.layers.append(Layer(name, "convolution", kernel, net.features, features, (z, y, x)))

        def needs(axis: int, interval: Interval) -> Interval:
            reach, step = kernel[axis] // 2, stride[axis]
            return interval[0] * step - reach, interval[1] * step + reach

        result = self._node(features, (z, y, x), (net,), needs)
        return self.rectify(name, result) if rectified else result

    def depthwise(self, name: str, net: _Node, kernel: Triple) -> _Node:
        self.layers.append(Layer(name, "depthwise", kernel, net.features, net.features, net.extent))

        def needs(axis: int, interval: Interval) -> Interval:
            return interval[0] - kernel[axis] // 2, interval[1] + kernel[axis] // 2

        return self._node(net.features, net.extent, (net,), needs)

    def rectify(self, name: str, net: _Node) -> _Node:
        if self._model.normalisation == "group":
            layer = Layer(f"{name}_norm", "normalisation", POINT, net.features, net.features, net.extent)
            self.layers.append(layer)
        return net

    def add(self, one: _Node, other: _Node) -> _Node:
        return self._node(one.features, one.extent, (one, other))

    def enlarge(self, net: _Node, factor: Triple) -> _Node:
        z, y, x = ((extent - 1) * times + 1 for extent, times in zip(net.extent, factor, strict=True))

        def needs(axis: int, interval: Interval) -> Interval:
            return interval[0] // factor[axis], -(-interval[1] // factor[axis])

        return self._node(net.features, (z, y, x), (net,), needs)

    def needed(self, position: Triple) -> tuple[Interval, Interval, Interval]:
        """Positions zyx of the inputs that the last value depends on at `position`, as if nothing had a border."""
        return cast(
            tuple[Interval, Interval, Interval], tuple(self._needed(axis, place) for axis, place in enumerate(position))
        )

    def _needed(self, axis: int, place: int) -> Interval:
        needed: dict[int, Interval] = {self._nodes[-1].number: (place, place)}
        for node in reversed(self._nodes):  # each after all that is made of it
            if node.number not in needed or not node.inputs:
                continue
            low, high = node.needs(axis, needed[node.number])
            for source in node.inputs:
                known = needed.get(source.number, (low, high))
                needed[source.number] = min(low, known[0]), max(high, known[1])
        inputs = [needed[node.number] for node in self._nodes if not node.inputs]
        return min(low for low, _ in inputs), max(high for _, high in inputs)

    def _node(
        self,
        features: int,
        extent: Triple,
        inputs: tuple[_Node, ...] = (),
        needs: Callable[[int, Interval], Interval] = lambda axis, interval: interval,
    ) -> _Node:
        node = _Node(len(self._nodes), features, extent, inputs, needs)
        self._nodes.append(node)
        return node


def trace(model: ModelParameters) -> Trace:
    """The trace of `model`'s variant."""
    from apps.ffn.variants import VARIANTS

    traced = Trace(model)
    VARIANTS[model.variant](model, traced, traced.input(), traced.input())
    return traced
