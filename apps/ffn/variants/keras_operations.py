"""The operations in Keras 3, on any backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apps.core.boxes import Triple
from apps.ffn.variants.operations import FLOAT32_LAYERS, POINT, Net

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters

LAST = "channels_last"


class KerasOperations:
    """Builds a functional Keras model.  Its weights are there to be assigned: kernels are zero.

    Attributes:
        variables: name of a weight -> its Keras variable; a depthwise kernel has another shape there, of the same size.
    """

    def __init__(self, model: ModelParameters, policy: Any) -> None:
        """`policy`: the `keras.DTypePolicy` of each layer."""
        self.variables: dict[str, Any] = {}
        self._model = model
        self._policy = policy

    def concatenate(self, nets: list[Net]) -> Net:
        from keras import ops

        return ops.concatenate(nets, axis=-1)

    def convolution(
        self, name: str, net: Net, features: int, kernel: Triple, *, rectified: bool = False, stride: Triple = POINT
    ) -> Net:
        from keras import layers

        plain = self._model.normalisation == "none"
        layer = layers.Conv3D(
            features,
            kernel,
            strides=stride,
            padding="same",
            data_format=LAST,
            activation="relu" if rectified and plain else None,  # in the layer, TensorFlow fuses the two
            kernel_initializer="zeros",
            name=name,
            dtype="float32" if name in FLOAT32_LAYERS else self._policy,
        )
        net = layer(net)
        self.variables |= {f"{name}/weights": layer.kernel, f"{name}/biases": layer.bias}
        return self.rectify(name, net) if rectified and not plain else net

    def depthwise(self, name: str, net: Net, kernel: Triple) -> Net:
        """By convolutions of two dimensions, which all backends have: z joins the batch, or y and x become one axis."""
        from keras import layers, ops

        _, z, y, x, features = net.shape
        flat = (-1, y, x, features) if kernel[0] == 1 else (-1, z, y * x, features)
        window = kernel[1:] if kernel[0] == 1 else (kernel[0], 1)
        layer = layers.DepthwiseConv2D(
            window,
            padding="same",
            data_format=LAST,
            use_bias=False,
            depthwise_initializer="zeros",
            name=name,
            dtype=self._policy,
        )
        net = ops.reshape(layer(ops.reshape(net, flat)), (-1, z, y, x, features))
        self.variables[f"{name}/weights"] = layer.kernel
        return net

    def rectify(self, name: str, net: Net) -> Net:
        from keras import layers, ops

        if self._model.normalisation == "group":
            # Its statistics are float32 in any precision.
            layer = layers.GroupNormalization(self._model.groups, name=f"{name}_norm", dtype=self._policy)
            net = layer(net)
            self.variables |= {f"{name}_norm/gamma": layer.gamma, f"{name}_norm/beta": layer.beta}
        # Not relu: TensorFlow's rewrite of graphs fails on that of a sum which is added again later, and then fuses
        # nothing anywhere, which doubles the time of a step in bfloat16.
        return ops.maximum(net, 0)

    def add(self, one: Net, other: Net) -> Net:
        from keras import layers

        # In float32: a sum that twelve modules add to would lose what the later ones say.
        return layers.Add(dtype="float32")([one, other])

    def enlarge(self, net: Net, factor: Triple) -> Net:
        """Axis by axis, the mean of two neighbours between them.  (Keras' pooling in 3-D lacks float16.)"""
        from keras import ops

        for axis, times in enumerate(factor, start=1):
            if times == 1:
                continue
            before = (slice(None),) * axis
            first, second, last = (net[(*before, part)] for part in (slice(-1), slice(1, None), slice(-1, None)))
            pairs = ops.stack([first, (first + second) * 0.5], axis=axis + 1)
            shape = [-1, *net.shape[1:]]
            shape[axis] = 2 * (net.shape[axis] - 1)
            net = ops.concatenate([ops.reshape(pairs, shape), last], axis=axis)
        return net
