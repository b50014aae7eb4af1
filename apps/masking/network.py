"""The 2-D U-Net (Ronneberger et al. 2015), and its variants.

A network sees a section averaged over blocks of `downsample` pixels: vessels and cell bodies are hundreds of times
larger than a membrane is thick, so most of the work at full resolution would tell nothing more about them.  Each of
`poolings` halvings doubles the channels; convolutions keep the extent ("same"), a tile's border is cut off afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta

from apps.core.parameters import Parameters
from apps.masking.classes import CLASSES
from apps.masking.sections import SEEN

VariantName = Literal["unet", "residual", "separable"]
Downsample = Literal[1, 2, 4, 8, 16, 32]

_KERNEL = 3
_CONVOLUTIONS = 2  # at every level, on the way down and up
_MOMENTUM = 0.9  # of the batch statistics: trainings are short


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
        down = _CONVOLUTIONS * sum(levels)
        bottom = _CONVOLUTIONS * 2**self.poolings
        reach = 2 * down + bottom + 2**self.poolings + 1
        unit = 2**self.poolings
        return -(-reach // unit) * unit * int(self.downsample)


Block = Callable[[Any, Any, int, str], Any]


def build(network: NetworkParameters) -> Any:
    """The Keras model: float32 [batch, y, x, SEEN] -> logits [batch, y, x, classes]; y, x multiples of 2^poolings.

    Layers are named by where they are, so that weights have the same names in every process.
    """
    import keras

    layers, block = keras.layers, BLOCKS[network.variant]
    image = keras.Input((None, None, SEEN), name="image")
    skips = []
    x = image
    for level in range(network.poolings):
        x = block(layers, x, network.channels * 2**level, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"pool{level}")(x)
    x = block(layers, x, network.channels * 2**network.poolings, "bottom")
    for level in reversed(range(network.poolings)):
        x = layers.Conv2DTranspose(network.channels * 2**level, 2, strides=2, name=f"up{level}_grow")(x)
        x = layers.Concatenate(name=f"up{level}_join")([skips[level], x])
        x = block(layers, x, network.channels * 2**level, f"up{level}")
    logits = layers.Conv2D(len(CLASSES), 1, name="logits")(x)
    return keras.Model(image, logits, name=network.variant)


def _unet(layers: Any, x: Any, channels: int, name: str) -> Any:
    for number in range(_CONVOLUTIONS):
        x = layers.Conv2D(channels, _KERNEL, padding="same", use_bias=False, name=f"{name}_{number}")(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_{number}_norm")(x)
        x = layers.Activation("relu", name=f"{name}_{number}_relu")(x)
    return x


def _residual(layers: Any, x: Any, channels: int, name: str) -> Any:
    """The block learns what to add to its input (He et al. 2016), brought to its channels by a 1x1 convolution."""
    shortcut = layers.Conv2D(channels, 1, name=f"{name}_shortcut")(x)
    return layers.Add(name=f"{name}_add")([shortcut, _unet(layers, x, channels, name)])


def _separable(layers: Any, x: Any, channels: int, name: str) -> Any:
    """Each convolution as one of every channel by itself and one of 1x1 over channels (Chollet 2017): far cheaper."""
    for number in range(_CONVOLUTIONS):
        x = layers.SeparableConv2D(channels, _KERNEL, padding="same", use_bias=False, name=f"{name}_{number}")(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_{number}_norm")(x)
        x = layers.Activation("relu", name=f"{name}_{number}_relu")(x)
    return x


# Variant -> (Keras's layers, what goes in, channels, name of the layers) -> what comes out, of the same extent.
# A block has at most _CONVOLUTIONS convolutions of _KERNEL: `NetworkParameters.margin` counts on that.
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
    return level + 1 if name.endswith("_grow") else level


def _product(shape: Any) -> int:
    return math.prod(int(extent) for extent in shape)
