"""Inference on every backend of Keras, each in a process of its own: Keras reads KERAS_BACKEND when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import ParameterError, StateError
from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.ffn.backend import VARIABLE, start_backend, start_tensorflow
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.hand_set import with_bright_path
from apps.ffn.model import ModelParameters, Weights, initial_weights
from apps.ffn.network import Network
from apps.ffn.settings import InferenceSettings
from apps.ffn.variants import VARIANTS
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data

BOX = Box.of((0, 0, 0), (24, 32, 32))
SETTINGS = InferenceSettings(min_size=100)

# Arguments: folder with the checkpoints and the image.  Writes labels.npy and, of each variant, NAME.npy.
OTHER = """
import sys
from pathlib import Path
import numpy as np
from tests.apps.ffn import test_backends
test_backends.write_all(Path(sys.argv[1]), Path(sys.argv[2]))
import keras
print(keras.backend.backend())
"""

other_backends = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
        )
        for name in ("jax", "torch")
    ],
)


def tube_weights(model: ModelParameters) -> Weights:
    """Initial weights that hardly count, around a path that finds what is brighter than the mean in the network."""
    return with_bright_path({name: value * np.float32(0.01) for name, value in initial_weights(model, 0).items()})


def variant_model(variant: str) -> ModelParameters:
    return ModelParameters(
        variant=variant,
        depth=2,
        features=4,
        taper=2.0,
        fov=(7, 9, 11),
        deltas=(1, 2, 2),
        normalisation="group",
        groups=2,
    )


def views(model: ModelParameters) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    image, seed = (rng.normal(0, 1, (2, *model.fov)).astype(np.float32) for _ in range(2))
    return image, seed


def write_all(folder: Path, output: Path) -> None:
    """The labels of the tubes, and the logits of each variant twice, on the backend of this process."""
    from apps.ffn.checkpoint import load_checkpoint
    from apps.inference.segment import segment_with

    checkpoint = load_checkpoint(str(folder / "checkpoint"))
    network = Network(checkpoint.model, checkpoint.weights, 1)
    image = open_volume(str(folder / "image.zarr"))
    found = segment_with(network, image, BOX, checkpoint.normalisation(None, None), SETTINGS, silent)
    np.save(output / "labels.npy", found.labels)
    for variant in VARIANTS:
        model = variant_model(variant)
        network = Network(model, initial_weights(model, 1), 1)
        predict = network.predictor(2)
        np.save(output / f"{variant}.npy", np.stack([predict(*views(model)), predict(*views(model))]))
        back = network.weights()
        assert all(np.array_equal(back[name], value) for name, value in initial_weights(model, 1).items())


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backends")
    tiny_data(folder)
    info = CheckpointInfo(model=TINY, image_mean=MEAN, image_std=STD, step=0, provenance={})
    save_checkpoint(folder / "checkpoint", info, tube_weights(TINY), {})
    write_all(folder, folder)
    return folder


@other_backends
def test_segmentation_does_not_depend_on_the_backend(backend: str, on_tensorflow: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(on_tensorflow), str(tmp_path)],
        cwd=Path(__file__).resolve().parents[3],
        env=os.environ | {VARIABLE: backend, "NPROC": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [backend]
    labels = np.load(on_tensorflow / "labels.npy")
    assert labels.max() >= 4
    assert np.array_equal(np.load(tmp_path / "labels.npy"), labels)
    for variant in VARIANTS:
        first, second = np.load(tmp_path / f"{variant}.npy")
        assert np.array_equal(first, second), f"{variant}: two calls differ"
        np.testing.assert_allclose(first, np.load(on_tensorflow / f"{variant}.npy")[0], rtol=1e-4, atol=1e-4)


def test_backends_that_cannot_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "theano")
    with pytest.raises(ParameterError, match=r"KERAS_BACKEND=theano.*tensorflow, jax, torch"):
        start_backend(1)
    monkeypatch.setenv(VARIABLE, "jax")
    with pytest.raises(ParameterError, match=r"KERAS_BACKEND=jax: training needs tensorflow"):
        start_tensorflow(1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParameterError, match="jax is not installed"):
        start_backend(1)


def test_threads_are_fixed_once_tensorflow_runs() -> None:
    Network(TINY, initial_weights(TINY, 0), threads=1)
    with pytest.raises(StateError, match="threads = 3"):
        start_tensorflow(3)
