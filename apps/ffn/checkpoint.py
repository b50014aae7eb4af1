"""Checkpoints: a folder with `model.json`, `weights.npz` and, where training can go on, `state.npz`.

The folder is swapped in whole.  `load_checkpoint` also takes the prefix of a google/ffn checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.files import folder_in_the_making, put_back
from apps.core.parameters import Parameters
from apps.core.volumes import VoxelSize
from apps.ffn.model import ModelParameters, Weights, check_weights

MODEL_FILE, WEIGHTS_FILE, STATE_FILE = "model.json", "weights.npz", "state.npz"

State = dict[str, NDArray[Any]]


class CheckpointInfo(Parameters, frozen=True, kw_only=True):
    """What `model.json` holds."""

    model: Annotated[ModelParameters, Meta(description="architecture, field of view and deltas")]
    image_mean: Annotated[float, Meta(description="subtracted from the image")]
    image_std: Annotated[float, Meta(gt=0, description="the image is divided by it, after the mean is subtracted")]
    step: Annotated[int, Meta(ge=0, description="training steps (optimiser updates) done")]
    provenance: Annotated[dict[str, Any], Meta(description="how it came to be: code version, data, seed, init")]
    voxel_size_nm: Annotated[
        VoxelSize | None,
        Meta(description="zyx, of all images it was trained on; null: not known, or they differ"),
    ] = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: with the field of view and deltas to use.
        weights: google/ffn's names without `seed_update/` -> float32 array.
        image_mean, image_std: the normalisation it was trained with; None in google/ffn's, which do not hold it.
        voxel_size_nm: of the images it was trained on, zyx in nanometres; None where that is not known (google/ffn's).
    """

    model: ModelParameters
    weights: Weights
    image_mean: float | None
    image_std: float | None
    step: int
    voxel_size_nm: VoxelSize | None = None

    @classmethod
    def of(cls, info: CheckpointInfo, model: ModelParameters, weights: Weights) -> Checkpoint:
        """What `model.json` says, with the weights; `model`: its own, or with another field of view."""
        return cls(
            model=model,
            weights=weights,
            image_mean=info.image_mean,
            image_std=info.image_std,
            step=info.step,
            voxel_size_nm=info.voxel_size_nm,
        )

    def normalisation(self, mean: float | None, std: float | None) -> tuple[float, float]:
        """(mean, standard deviation), what is given before what the checkpoint holds.

        Raises ParameterError where neither says it.
        """
        mean, std = (self.image_mean if mean is None else mean), (self.image_std if std is None else std)
        if mean is None or std is None:
            raise ParameterError("image_mean, image_std: a google/ffn checkpoint does not hold them; give both")
        return mean, std


def save_checkpoint(folder: Path, info: CheckpointInfo, weights: Weights, state: Mapping[str, NDArray[Any]]) -> None:
    """Write the folder atomically in the place of an older one.  Raises DataError where it cannot be written."""
    with checkpoint_in_the_making(folder) as temporary:
        info.save(temporary / MODEL_FILE)
        save_arrays(temporary / WEIGHTS_FILE, weights)
        save_arrays(temporary / STATE_FILE, state)


@contextlib.contextmanager
def checkpoint_in_the_making(folder: Path) -> Iterator[Path]:
    """Yield a folder to write a checkpoint to; when it is whole, it takes the place of an older one.

    Raises DataError where it cannot be written.
    """
    try:
        with folder_in_the_making(folder) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error


def find_own_checkpoint(folder: Path) -> Path | None:
    """`folder` where it holds a checkpoint, None otherwise.

    A process killed between the two renames of the swap leaves the older checkpoint put away: it is put back.
    """
    put_back(folder, MODEL_FILE)
    return folder if folder.exists() else None


def read_info(folder: Path) -> CheckpointInfo:
    """`model.json`.  Raises DataError that names the checkpoint."""
    if not (folder / MODEL_FILE).is_file():
        raise DataError(f"{folder}: is not a checkpoint, it has no {MODEL_FILE}")
    try:
        return CheckpointInfo.load(folder / MODEL_FILE)
    except ParameterError as error:
        raise DataError(f"{folder}: is a damaged checkpoint ({error})") from error


def read_weights(folder: Path, model: ModelParameters) -> Weights:
    """The weights of an own checkpoint.  Raises DataError where they are damaged or do not fit `model`."""
    return check_weights(model, load_arrays(folder / WEIGHTS_FILE), str(folder))


def read_state(folder: Path) -> State:
    """What training needs to go on from an own checkpoint."""
    return load_arrays(folder / STATE_FILE)


def load_checkpoint(path: str, fov: Triple | None = None, deltas: Triple | None = None) -> Checkpoint:
    """Load a checkpoint folder of this project, or a google/ffn checkpoint by its prefix (`.../model.ckpt-N`).

    `fov` and `deltas` (zyx) replace those of the checkpoint, which any convolutional network allows; google/ffn's hold
    none, its published 33 and 8 are taken.  Raises DataError that names the checkpoint where it is missing, damaged,
    truncated or of another architecture.
    """
    folder = Path(path)
    if folder.is_dir():
        info = read_info(folder)
        model = _with_geometry(info.model, fov, deltas)
        return Checkpoint.of(info, model, read_weights(folder, model))
    if Path(f"{path}.index").is_file():
        from apps.ffn.google_checkpoint import read_google_checkpoint

        model, weights, step = read_google_checkpoint(path)
        model = _with_geometry(model, fov, deltas)
        return Checkpoint(model=model, weights=weights, image_mean=None, image_std=None, step=step)
    raise _no_checkpoint(path)


def geometry_of(path: str) -> tuple[Triple, Triple]:
    """Field of view and deltas zyx that `load_checkpoint(path)` gives, without reading weights."""
    if Path(path).is_dir():
        model = read_info(Path(path)).model
        return model.fov, model.deltas
    if Path(f"{path}.index").is_file():
        from apps.ffn.google_checkpoint import PUBLISHED_DELTAS, PUBLISHED_FOV

        return PUBLISHED_FOV, PUBLISHED_DELTAS
    raise _no_checkpoint(path)


def voxel_size_of(path: str) -> VoxelSize | None:
    """Voxel size (zyx, nm) that `load_checkpoint(path)` gives, without reading weights."""
    return read_info(Path(path)).voxel_size_nm if Path(path).is_dir() else None


def _no_checkpoint(path: str) -> DataError:
    return DataError(
        f"{path}: no such checkpoint; expected a checkpoint folder with {MODEL_FILE}, or the prefix of a google/ffn "
        f"checkpoint (the path without .index)"
    )


def _with_geometry(model: ModelParameters, fov: Triple | None, deltas: Triple | None) -> ModelParameters:
    values = model.to_dict() | {key: value for key, value in (("fov", fov), ("deltas", deltas)) if value is not None}
    return ModelParameters.from_json(values, where="model")


def weights_digest(weights: Weights) -> str:
    """SHA-256 over the weights by name: equal weights, equal digest."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an npz and flush it to disk; for files of a folder that is renamed when it is whole."""
    with path.open("wb") as stream:
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())


def load_arrays(path: Path) -> State:
    """The arrays of one file of a checkpoint.  Raises DataError that names both where it is missing or damaged."""
    if not path.is_file():
        raise DataError(f"{path.parent}: is a damaged checkpoint, it has no {path.name}; take an earlier one")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError is of damaged flags: a compression that nobody knows, encryption.
        raise DataError(
            f"{path.parent}: is a damaged checkpoint ({path.name}: {error}); take an earlier one"
        ) from error
