"""A canvas that stays on TensorFlow's device: images, maps, gather, network, rules and scatter.

A batch takes a few numbers a look to the device and a few back: positions there, and for each look whether it was
valid, the map at the object's start, and the best voxel of each face.  It is what makes a GPU worth its price, where
the host's part of a step would otherwise take longer than the network's; it runs on a CPU as well, for tests.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.ffn.backend import backend_name, import_tensorflow
from apps.ffn.canvas import HELD, Array, Look, Thresholds, View, faces_of, not_finite, quantise
from apps.ffn.movement import logit
from apps.ffn.network import Network


def has_gpu() -> bool:
    """Whether Keras runs on TensorFlow, and TensorFlow sees a GPU."""
    if backend_name() != "tensorflow":
        return False
    return bool(import_tensorflow().config.list_logical_devices("GPU"))


class TensorFlowCanvas:
    """See `Canvas`.  The network runs on batches of one fixed size, so that a look's result hangs on nothing beside it.

    The maps of all slots lie one after the other in one flat variable, and one field of view more where the looks that
    fill up a batch go.
    """

    def __init__(self, network: Network, thresholds: Thresholds, slots: int, voxels: int, batch: int) -> None:
        """`voxels`: of the largest subvolume.  Device memory: 8 bytes x slots x voxels, and the network's own.

        Raises ParameterError where the device has less, or Keras runs on another backend than TensorFlow.
        """
        if backend_name() != "tensorflow":
            raise ParameterError(f"Keras runs on {backend_name()}: maps on the device need KERAS_BACKEND=tensorflow")
        tf = import_tensorflow()
        self.slots, self.batch = slots, batch
        self.model_seconds = 0.0
        self._tf, self._network, self._thresholds, self._voxels = tf, network, thresholds, voxels
        self._fov, self._margin = network.model.fov, network.model.margin
        self._faces = faces_of(network.model)
        self.pipelined = has_gpu()
        scratch = math.prod(self._fov)
        with tf.device("/GPU:0" if self.pipelined else "/CPU:0"):
            try:
                self._images = tf.Variable(tf.zeros(slots * voxels + scratch, tf.float32))
                self._maps = tf.Variable(tf.fill([slots * voxels + scratch], np.float32(np.nan)))
            except tf.errors.ResourceExhaustedError as error:
                raise ParameterError(
                    f"{slots} subvolumes of {voxels} voxels at once do not fit into the device's memory; give a "
                    "smaller batch, or smaller subvolumes"
                ) from error
            self._step = self._compile(batch)
            self._cut = tf.function(self._cut_box, input_signature=[tf.TensorSpec(6, tf.int64)])
        self._shapes: dict[int, Triple] = {}
        self._in_flight: deque[tuple[Any, int]] = deque()

    def load(self, slot: int, image: Array) -> None:
        tf, size = self._tf, image.size
        if size > self._voxels:
            raise DataError(f"a subvolume of {size} voxels does not fit into a slot of {self._voxels}")
        self._shapes[slot] = (image.shape[0], image.shape[1], image.shape[2])
        first = slot * self._voxels
        begin, end, one = (tf.constant([n], tf.int64) for n in (first, first + size, 1))
        unknown = tf.fill([size], np.float32(np.nan))
        for variable, values in ((self._images, np.ascontiguousarray(image).ravel()), (self._maps, unknown)):
            # `variable[begin:end].assign` would copy the slots of all subvolumes first.
            tf.raw_ops.ResourceStridedSliceAssign(
                ref=variable.handle, begin=begin, end=end, strides=one, value=tf.constant(values)
            )

    def begin(self, slot: int, start: Triple) -> None:
        index = self._flat(slot, start)
        self._tf.raw_ops.ResourceScatterUpdate(
            resource=self._maps.handle, indices=[index], updates=[self._thresholds.init]
        )

    def launch(self, looks: Sequence[Look]) -> None:
        begin = time.perf_counter()
        # Low corner, strides of z and y, and the start, in the flat variable; what fills up the batch is scratch.
        scratch = self.slots * self._voxels
        _, fy, fx = self._fov
        places = np.full((4, self.batch), [[scratch], [fy * fx], [fx], [scratch]], np.int64)
        (mz, my, mx) = self._margin
        for column, (slot, (z, y, x), start) in enumerate(looks):
            _, ny, nx = self._shapes[slot]
            corner = self._flat(slot, (z - mz, y - my, x - mx))
            places[:, column] = corner, ny * nx, nx, self._flat(slot, start)
        self._in_flight.append((self._step(self._tf.constant(places)), len(looks)))
        self.model_seconds += time.perf_counter() - begin

    def collect(self) -> list[View]:
        begin = time.perf_counter()
        tensor, count = self._in_flight.popleft()
        rows = tensor.numpy()[:count]
        self.model_seconds += time.perf_counter() - begin
        if np.isnan(rows[:, 3:]).any():
            raise not_finite()
        views = []
        for valid, start, deleted, *bests in rows.tolist():
            moves = [
                (score, face.offset(int(index)))
                for face, score, index in zip(self._faces, bests[::2], bests[1::2], strict=True)
            ]
            views.append(View(bool(valid), start, moves, int(deleted)))
        return views

    def take(self, slot: int, box: Box, probability: bool) -> tuple[NDArray[np.bool_], NDArray[np.uint8] | None]:
        _, ny, nx = self._shapes[slot]
        place = np.array([self._flat(slot, box.offset), ny * nx, nx, *box.shape], np.int64)
        logits = self._cut(self._tf.constant(place)).numpy()
        with np.errstate(invalid="ignore"):
            mask = logits >= self._thresholds.segment
        return mask, quantise(logits) if probability else None

    def _flat(self, slot: int, position: Triple) -> int:
        (z, y, x), (_, ny, nx) = position, self._shapes[slot]
        return slot * self._voxels + (z * ny + y) * nx + x

    def _cut_box(self, place: Any) -> Any:
        """The map in a box; it is unknown there afterwards."""
        tf = self._tf
        first, stride_z, stride_y, nz, ny, nx = tf.unstack(place)
        z, y, x = tf.range(nz)[:, None, None], tf.range(ny)[:, None], tf.range(nx)
        index = first + z * stride_z + y * stride_y + x
        logits = tf.gather(self._maps, index)
        with tf.control_dependencies([logits]):
            tf.raw_ops.ResourceScatterUpdate(
                resource=self._maps.handle, indices=tf.reshape(index, [-1]), updates=tf.constant(np.float32(np.nan))
            )
        return logits

    def _compile(self, batch: int) -> Any:
        """One step of `batch` looks, [4, batch] int64 in (see `launch`), [batch, 3 + 2 x faces] float32 out."""
        tf, network, limits, faces = self._tf, self._network.keras_model, self._thresholds, self._faces
        (fz, fy, fx), voxels, held = self._fov, math.prod(self._fov), logit(HELD)
        dz, dy, dx = (tf.constant(n.ravel(), tf.int64) for n in np.indices(self._fov))
        in_face = [np.arange(voxels, dtype=np.int32).reshape(self._fov)[face.view].ravel() for face in faces]

        @tf.function(input_signature=[tf.TensorSpec((4, batch), tf.int64)])
        def step(places: Any) -> Any:
            corner, stride_z, stride_y, start = tf.unstack(places[:, :, None])
            index = corner + dz * stride_z + dy * stride_y + dx
            image, seed = tf.gather(self._images, index), tf.gather(self._maps, index)
            valid = seed[:, voxels // 2, None] >= limits.move
            shown = tf.where(tf.math.is_nan(seed), limits.pad, seed)
            shape = (batch, fz, fy, fx, 1)
            logits = network([tf.reshape(image, shape), tf.reshape(shown, shape)], training=False)
            logits = tf.reshape(logits, (batch, voxels))
            gone = (seed >= held) & (logits < 0)  # never where the map is unknown: NaN is at least nothing
            deleted = tf.math.count_nonzero(gone, axis=1, keepdims=True, dtype=tf.int32)
            if limits.disco is not None:
                over = tf.math.count_nonzero(logits >= limits.move, axis=1, keepdims=True, dtype=tf.int32)
                found = tf.cast(over, tf.float32) > np.float32(limits.disco * voxels)
                logits = tf.where(found & (seed < 0) & (logits > seed), seed, logits)
            flat = tf.reshape(index, [-1]), tf.reshape(tf.where(valid, logits, seed), [-1])
            tf.raw_ops.ResourceScatterUpdate(resource=self._maps.handle, indices=flat[0], updates=flat[1])
            columns = [tf.cast(valid, tf.float32), tf.gather(self._maps, start), tf.cast(deleted, tf.float32)]
            for chosen in in_face:
                values = tf.gather(logits, chosen, axis=1)
                best = tf.cast(tf.argmax(values, axis=1)[:, None], tf.float32)
                columns += [tf.reduce_max(values, axis=1, keepdims=True), best]
            return tf.concat(columns, axis=1)

        return step.get_concrete_function()
