"""The Keras backend of this process, started once with the number of threads that a job was given.

Keras reads KERAS_BACKEND when it is imported first, and keeps to it; the default here is TensorFlow.  Inference runs on
any backend in `BACKENDS`, training on TensorFlow alone.  This is the one module that knows one backend from another.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import ParameterError, StateError
from apps.ffn.lean_import import OPTIONAL, lean_import
from apps.ffn.quiet import LEVEL, without_noise

Array = NDArray[np.float32]
Predict = Callable[[Array, Array], Array]

VARIABLE = "KERAS_BACKEND"
DEFAULT = "tensorflow"


def backend_name() -> str:
    """The backend that Keras runs on in this process, or would.  Raises ParameterError for one that is not known or
    not installed."""
    name = os.environ.setdefault(VARIABLE, DEFAULT)
    if name not in BACKENDS:
        raise ParameterError(f"{VARIABLE}={name}: is no backend known here; expected one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise ParameterError(f"{VARIABLE}={name}: {name} is not installed; install it or unset {VARIABLE}")
    return name


def start_backend(threads: int) -> str:
    """Start the backend with `threads` threads (jax: at most, where nothing used jax before) and return its name.

    Raises ParameterError as `backend_name`, StateError where the backend runs with another number already.
    """
    name = backend_name()
    BACKENDS[name][0](threads)
    return name


def start_tensorflow(threads: int) -> Any:
    """The `tensorflow` module, with its thread pools set to `threads`, for what only TensorFlow can do: training.

    Raises ParameterError where Keras is told to run on another backend, StateError where TensorFlow already runs in
    this process with another number of threads: it reads it once, at start.
    """
    if backend_name() != "tensorflow":
        raise ParameterError(f"{VARIABLE}={backend_name()}: training needs tensorflow; unset {VARIABLE}")
    start_backend(threads)
    return import_tensorflow()


def import_tensorflow() -> Any:
    """The `tensorflow` module, quiet, whatever Keras runs on."""
    os.environ.setdefault(LEVEL, "2")
    os.environ.setdefault(VARIABLE, DEFAULT)
    # It takes nearly all memory of every GPU that it sees otherwise, and another job on the node finds none.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with contextlib.ExitStack() as stack:
        if "tensorflow" not in sys.modules:
            stack.enter_context(without_noise())
            stack.enter_context(lean_import(OPTIONAL - {backend_name()}))
        import tensorflow as tf

    return tf


def compile_predictor(keras_model: Any, batch: int, fov: Triple) -> Predict:
    """A function of (image, seed), both [batch, z, y, x] float32, that gives the logits of that shape and type.

    It is compiled once; `keras_model` takes and gives arrays [batch, z, y, x, 1], and its present weights are used at
    every call.
    """
    return BACKENDS[backend_name()][1](keras_model, batch, fov)


def _start_tensorflow(threads: int) -> None:
    tf = import_tensorflow()
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


def _start_jax(threads: int) -> None:
    # XLA sizes the pool of its CPU client by this variable when the client is made; there is no call for it.
    os.environ.setdefault("NPROC", str(threads))


def _start_torch(threads: int) -> None:
    _torch().set_num_threads(threads)


def _torch() -> Any:
    """The `torch` module, which is no dependency of this project: who wants it installs the build for their machine."""
    return importlib.import_module("torch")


def _on_tensorflow(keras_model: Any, batch: int, fov: Triple) -> Predict:
    tf = import_tensorflow()
    spec = tf.TensorSpec((batch, *fov), tf.float32)

    # Frozen to constants, its convolutions were a third slower.
    @tf.function(input_signature=[spec, spec])
    def step(image: Any, seed: Any) -> Any:
        return keras_model([image[..., None], seed[..., None]], training=False)[..., 0]

    concrete, constant = step.get_concrete_function(), tf.constant

    def predict(image: Array, seed: Array) -> Array:
        result: Array = concrete(constant(image), constant(seed)).numpy()
        return result

    return predict


def _on_jax(keras_model: Any, batch: int, fov: Triple) -> Predict:
    import jax

    def step(weights: Any, state: Any, image: Any, seed: Any) -> Any:
        logits, _ = keras_model.stateless_call(weights, state, [image[..., None], seed[..., None]], training=False)
        return logits[..., 0]

    def values() -> tuple[list[Any], list[Any]]:
        trainable, fixed = keras_model.trainable_variables, keras_model.non_trainable_variables
        return [variable.value for variable in trainable], [variable.value for variable in fixed]

    view = jax.ShapeDtypeStruct((batch, *fov), np.float32)
    compiled = jax.jit(step).lower(*values(), view, view).compile()

    def predict(image: Array, seed: Array) -> Array:
        return np.asarray(compiled(*values(), image, seed), np.float32)

    return predict


def _on_torch(keras_model: Any, batch: int, fov: Triple) -> Predict:
    torch = _torch()

    def predict(image: Array, seed: Array) -> Array:
        with torch.inference_mode():
            logits = keras_model([torch.from_numpy(image[..., None]), torch.from_numpy(seed[..., None])])
        result: Array = logits[..., 0].float().cpu().numpy()
        return result

    return predict


# Backend -> how it is started with a number of threads, how a predictor is compiled on it.
BACKENDS: dict[str, tuple[Callable[[int], None], Callable[[Any, int, Triple], Predict]]] = {
    "tensorflow": (_start_tensorflow, _on_tensorflow),
    "jax": (_start_jax, _on_jax),
    "torch": (_start_torch, _on_torch),
}
