"""Reading the TensorFlow 1 checkpoints that google/ffn writes: names `seed_update/conv{i}_{a,b}/{weights,biases}`."""

from __future__ import annotations

import re

import numpy as np

from apps.core.errors import DataError
from apps.ffn.backend import import_tensorflow
from apps.ffn.model import ModelParameters, Weights, check_weights, weight_shapes

SCOPE = "seed_update/"
INDEX = ".index"  # of the file beside the weights; what comes before it is the prefix that names a checkpoint

# Published with the FIB-25 sample; the file itself holds neither.
PUBLISHED_FOV, PUBLISHED_DELTAS = (33, 33, 33), (8, 8, 8)


def read_google_checkpoint(prefix: str) -> tuple[ModelParameters, Weights, int]:
    """Description, weights and global step of the checkpoint `prefix`.index, `prefix`.data-*.

    Depth and features come from the tensors' shapes; the arrays load into Keras convolutions as they are.
    Raises DataError that names the checkpoint where it is damaged, truncated, or not a google/ffn `convstack_3d`.
    """
    tf = import_tensorflow()
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        found = {name.removeprefix(SCOPE): tuple(shape) for name, shape in shapes.items() if name.startswith(SCOPE)}
        model = _describe(found, prefix)
        weights = {name: np.asarray(reader.get_tensor(SCOPE + name)) for name in weight_shapes(model) if name in found}
        step = int(reader.get_tensor("global_step")) if "global_step" in shapes else 0
    except (tf.errors.OpError, ValueError, RuntimeError, LookupError) as error:  # by damage and version of TensorFlow
        reason = str(error).splitlines()[0]
        raise DataError(f"{prefix}: is a damaged or truncated checkpoint ({reason}); fetch it again") from error
    return model, check_weights(model, weights, prefix), step


def _describe(shapes: dict[str, tuple[int, ...]], prefix: str) -> ModelParameters:
    modules = [int(match[1]) for name in shapes if (match := re.fullmatch(r"conv(\d+)_a/weights", name))]
    if not modules or "conv0_a/weights" not in shapes:
        raise DataError(
            f"{prefix}: holds no tensor {SCOPE}conv0_a/weights; expected a google/ffn convstack_3d checkpoint"
        )
    features = shapes["conv0_a/weights"][-1]
    return ModelParameters(depth=max(modules) + 1, features=features, fov=PUBLISHED_FOV, deltas=PUBLISHED_DELTAS)
