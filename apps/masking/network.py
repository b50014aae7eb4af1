"""The 2-D U-Net (Ronneberger et al. 2015), and its variants.

A network sees a section averaged over blocks of `downsample` pixels: vessels and cell bodies are hundreds of times
larger than a membrane is thick, so most of the work at full resolution would tell nothing more about them.  Each of
`poolings` halvings doubles the channels; convolutions keep the extent ("same"), a tile's border is cut off afterwards.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from msgspec import Meta

from apps.core.parameters import Parameters
from apps.masking.classes import CLASSES
from apps.masking.sections import SEEN
from apps.unet.network import CONVOLUTIONS, MOMENTUM, Block, build_u_net
from apps.unet.weights import GROW

VariantName = Literal["unet", "residual", "separable"]
Downsample = Literal[1, 2, 4, 8, 16, 32]

_KERNEL = 3


class NetworkParameters(Parameters, frozen=True, kw_only=True):
    """What the network is like."""

    variant: Annotated[
        VariantName,
        Meta(description="blocks: unet (two convolutions), residual (with a shortcut), separable (depthwise)"),
    ] = "unet"
    channels: Annotated[int, Meta(ge=8, le=256, description="channels at the finest level; each pooling doubles")] = 12
    poolings: Annotated[int, Meta(ge=1, le=5, description="halvings on the way down")] = 4
    downsample: Annotated[
        Downsample, Meta(description="pixels (y and x) averaged into one of what the network sees")
    ] = 2

    @property
    def unit(self) -> int:
        """Pixels that a tile's offset and extent have to be a multiple of, for every tile to be pooled alike."""
        return int(self.downsample) * 2**self.poolings

    @property
    def margin(self) -> int:
        """Pixels around a place that its answer can depend on, rounded up to whole units.

        Each convolution of a level adds one of that level's pixels; a pooled pixel stands for those under it; the last
        step, bilinear interpolation to single pixels, reaches for one more.
        """
        levels = [2**level for level in range(self.poolings)]
        down = CONVOLUTIONS * sum(levels)
        bottom = CONVOLUTIONS * 2**self.poolings
        reach = 2 * down + bottom + 2**self.poolings + 1
        unit = 2**self.poolings
        return -(-reach // unit) * unit * int(self.downsample)


def build(network: NetworkParameters) -> Any:
    """The Keras model: float32 [batch, y, x, SEEN] -> logits [batch, y, x, classes]; y, x multiples of 2^poolings."""
    windows = [(2, 2)] * network.poolings
    return build_u_net(network.variant, SEEN, len(CLASSES), network.channels, windows, BLOCKS[network.variant])


def _unet(layers: Any, x: Any, channels: int, name: str) -> Any:
    for number in range(CONVOLUTIONS):
        x = layers.Conv2D(channels, _KERNEL, padding="same", use_bias=False, name=f"{name}_{number}")(x)
        x = layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_{number}_norm")(x)
        x = layers.Activation("relu", name=f"{name}_{number}_relu")(x)
    return x


def _residual(layers: Any, x: Any, channels: int, name: str) -> Any:
    """The block learns what to add to its input (He et al. 2016), brought to its channels by a 1x1 convolution."""
    shortcut = layers.Conv2D(channels, 1, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([shortcut, _unet(layers, x, channels, name)])


def _separable(layers: Any, x: Any, channels: int, name: str) -> Any:
    """Each convolution as one of every channel by itself and one of 1x1 over channels (Chollet 2017): far cheaper."""
    for number in range(CONVOLUTIONS):
        x = layers.SeparableConv2D(channels, _KERNEL, padding="same", use_bias=False, name=f"{name}_{number}")(x)
        x = layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_{number}_norm")(x)
        x = layers.Activation("relu", name=f"{name}_{number}_relu")(x)
    return x


# A block has at most CONVOLUTIONS convolutions of _KERNEL: `NetworkParameters.margin` counts on that.
BLOCKS: dict[VariantName, Block] = {"unet": _unet, "residual": _residual, "separable": _separable}


def parameter_count(network: NetworkParameters) -> int:
    """Trainable numbers of a network."""
    return sum(_product(weight.shape) for weight in build(network).trainable_weights)


def flop_per_pixel(network: NetworkParameters) -> float:
    """Operations (multiplications and additions) that one forward pass takes per pixel of the section."""
    operations = 0.0
    for layer in build(network).layers:
        kernels = [weight for weight in layer.trainable_weights if len(weight.shape) == 4]
        operations += sum(2 * _product(kernel.shape) / 4 ** _level(layer.name, network) for kernel in kernels)
    return operations / int(network.downsample) ** 2


def _level(name: str, network: NetworkParameters) -> int:
    """How often the input of that layer's kernel has been halved."""
    where = name.split("_")[0]
    if where == "bottom":
        return network.poolings
    level = int(where[-1]) if where[-1].isdigit() else 0
    # A transposed convolution applies its kernel to every pixel of the coarser level.
    return level + 1 if name.endswith(GROW) else level


def _product(shape: Any) -> int:
    return math.prod(int(extent) for extent in shape)
