"""The 3-D U-Net (Cicek et al. 2016), and its variants.

Each of `poolings` halvings doubles the channels; convolutions keep the extent ("same"), a tile's border is cut off
afterwards.  Every output is a probability of its own: a voxel can be in a cleft, in a cloud of vesicles, or in neither.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.unet.network import CONVOLUTIONS, MOMENTUM, Block, build_u_net

VariantName = Literal["unet", "residual", "factored"]

_KERNEL = 3


class NetworkParameters(Parameters, frozen=True, kw_only=True):
    """What the network is like."""

    variant: Annotated[
        VariantName,
        Meta(description="blocks: unet (two convolutions), residual (with a shortcut), factored (1x3x3, then 3x1x1)"),
    ] = "unet"
    channels: Annotated[int, Meta(ge=4, le=128, description="channels at the finest level; each pooling doubles")] = 8
    poolings: Annotated[int, Meta(ge=1, le=4, description="halvings on the way down")] = 2
    flat_poolings: Annotated[
        int,
        Meta(ge=0, le=4, description="the first so many of these halve y and x only: for thick sections"),
    ] = 0

    def check(self) -> None:
        if self.flat_poolings > self.poolings:
            raise ParameterError(
                f"flat_poolings = {self.flat_poolings}: expected at most poolings = {self.poolings}, of which they are"
            )

    def window(self, level: int) -> Triple:
        """Voxels of that level (0 is the image's) that become one of the next, zyx."""
        return (1 if level < self.flat_poolings else 2, 2, 2)

    @property
    def unit(self) -> Triple:
        """Voxels that a tile's offset and extent have to be a multiple of, for every tile to be pooled alike."""
        return 2 ** (self.poolings - self.flat_poolings), 2**self.poolings, 2**self.poolings

    @property
    def margin(self) -> Triple:
        """Voxels around a place that its answer can depend on, rounded up to whole units.

        Each convolution of a level adds one of that level's voxels; a pooled voxel stands for those under it.
        """
        found = []
        for axis, unit in enumerate(self.unit):
            scale, reach = 1, 0
            for level in range(self.poolings):
                reach += 2 * CONVOLUTIONS * scale  # down and up
                scale *= self.window(level)[axis]
            reach += CONVOLUTIONS * scale + scale
            found.append(-(-reach // unit) * unit)
        z, y, x = found
        return z, y, x


def build(network: NetworkParameters, outputs: int) -> Any:
    """The Keras model: float32 [batch, z, y, x, 1] -> logits [batch, z, y, x, outputs], extents multiples of `unit`."""
    windows = [network.window(level) for level in range(network.poolings)]
    return build_u_net(network.variant, 1, outputs, network.channels, windows, BLOCKS[network.variant])


def _convolve(layers: Any, x: Any, channels: int, kernels: tuple[int | Triple, ...], name: str) -> Any:
    """Convolutions one after the other, then batch statistics and the rectifier."""
    for number, kernel in enumerate(kernels):
        x = layers.Conv3D(channels, kernel, padding="same", use_bias=False, name=f"{name}_{number}")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _unet(layers: Any, x: Any, channels: int, name: str) -> Any:
    for number in range(CONVOLUTIONS):
        x = _convolve(layers, x, channels, (_KERNEL,), f"{name}_{number}")
    return x


def _residual(layers: Any, x: Any, channels: int, name: str) -> Any:
    """The block learns what to add to its input (He et al. 2016), brought to its channels by a 1x1x1 convolution."""
    shortcut = layers.Conv3D(channels, 1, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([shortcut, _unet(layers, x, channels, name)])


def _factored(layers: Any, x: Any, channels: int, name: str) -> Any:
    """Each convolution as one within sections and one across them (Qiu et al. 2017): half of the operations."""
    for number in range(CONVOLUTIONS):
        x = _convolve(layers, x, channels, ((1, _KERNEL, _KERNEL), (_KERNEL, 1, 1)), f"{name}_{number}")
    return x


# A block reaches for CONVOLUTIONS voxels along an axis at most: `NetworkParameters.margin` counts on that.
BLOCKS: dict[VariantName, Block] = {"unet": _unet, "residual": _residual, "factored": _factored}


def loss(tf: Any, logits: Any, targets: Any) -> Any:
    """Binary cross-entropy of every output, and 1 - soft Dice (Milletari et al. 2016) of those in the batch."""
    entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))
    found = tf.sigmoid(logits)
    sums = [tf.reduce_sum(part, axis=(0, 1, 2, 3)) for part in (found * targets, found, targets)]
    dice = (2 * sums[0] + 1) / (sums[1] + sums[2] + 1)  # one voxel more: an output without any is no division by 0
    there = tf.cast(sums[2] > 0, tf.float32)
    return entropy + tf.reduce_sum((1 - dice) * there) / tf.maximum(tf.reduce_sum(there), 1.0)
