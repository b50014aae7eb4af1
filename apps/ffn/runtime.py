"""TensorFlow, started once with the number of threads that a job was given."""

from __future__ import annotations

import os
from typing import Any

from apps.core.errors import StateError


def import_tensorflow() -> Any:
    """The `tensorflow` module, quiet, with Keras on top of it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import tensorflow as tf

    return tf


def start_tensorflow(threads: int) -> Any:
    """The `tensorflow` module, with its thread pools set to `threads`.

    Raises StateError where TensorFlow already runs in this process with another number: it reads it once, at start.
    """
    tf = import_tensorflow()
    # This rewrite fails on the network's shared additions, with a line of error on the terminal and nothing gained.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    threading = tf.config.threading
    try:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        running = threading.get_intra_op_parallelism_threads()
        if running != threads:
            raise StateError(
                f"threads = {threads}: TensorFlow already runs in this process with {running}; use one process a job"
            ) from error
    return tf
