"""A network from elsewhere becomes a registered model: a checkpoint of this project, or one that google/ffn wrote."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.stage import code_version
from apps.core.volumes import VoxelSize
from apps.ffn.checkpoint import (
    MODEL_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    CheckpointInfo,
    load_checkpoint,
    read_info,
    save_checkpoint,
)
from apps.ffn.google_checkpoint import INDEX
from apps.ffn.settings import InferenceSettings
from ensemble.models import CHAMPION, Model, check_names, register_model


def add_model(
    home: Path,
    name: str,
    checkpoint: str,
    *,
    voxel_size_nm: VoxelSize | None = None,
    normalisation: tuple[float | None, float | None] = (None, None),
    fov: Triple | None = None,
    deltas: Triple | None = None,
    inference: InferenceSettings | None = None,
    pointing: Sequence[str] = (CHAMPION,),
) -> Model:
    """Register a checkpoint folder of this project, or a google/ffn checkpoint by its prefix (`.../model.ckpt-N`).

    Args:
        voxel_size_nm: that it was trained at, zyx; None: what the checkpoint says, which may be nothing.
        normalisation: (mean, standard deviation) of the image, in grey values; None: what the checkpoint says.
        fov, deltas: zyx in voxels; None: the checkpoint's, those published (33 and 8) for google/ffn's.
        inference: settings to segment with; None: those that google/ffn published.
        pointing: aliases to point at it.

    The model that is registered holds what is said here beside what the checkpoint does.  The same again makes nothing
    new.  Raises DataError where there is no checkpoint, or a damaged one; ParameterError for a bad name, or where
    neither the checkpoint nor the caller says mean and standard deviation.
    """
    check_names(name, pointing)
    if voxel_size_nm is not None and min(voxel_size_nm) <= 0:
        raise ParameterError(f"voxel size {voxel_size_nm}: expected positive nanometres")
    # Links and dots gone, so that the same from elsewhere in the tree is no other model, which would move the aliases.
    source = Path(checkpoint).resolve()
    _refuse_folder_of_prefixes(checkpoint, source)
    loaded = load_checkpoint(checkpoint, fov, deltas)
    mean, std = loaded.normalisation(*normalisation)
    own = read_info(source) if source.is_dir() else None
    said: dict[str, Any] = {"model": loaded.model, "image_mean": mean, "image_std": std}
    said["voxel_size_nm"] = voxel_size_nm or loaded.voxel_size_nm
    if own is None:
        provenance = {"imported_from": str(source), "code_version": code_version()}
        info = CheckpointInfo(**said, step=loaded.step, provenance=provenance)
    else:
        info = replace(own, **said)
    settings = inference or InferenceSettings()
    with tempfile.TemporaryDirectory(prefix="ensemble-model-") as scratch:
        folder = Path(scratch) / "checkpoint"
        if own is None:
            save_checkpoint(folder, info, loaded.weights, {})
        else:
            _copy(source, folder, own, info)
        return register_model(
            home,
            name,
            folder,
            row={},
            reason=f"added from {source}",
            inference=settings.to_dict(),
            normalisation=(mean, std),
            voxel_size_nm=info.voxel_size_nm,
            pointing=pointing,
        )


def _refuse_folder_of_prefixes(given: str, folder: Path) -> None:
    """Raise DataError, which says what to give, for the folder in which google/ffn's checkpoints lie."""
    if not folder.is_dir() or (folder / MODEL_FILE).exists():
        return
    prefixes = sorted(file.stem for file in folder.glob(f"*{INDEX}"))
    if prefixes:
        raise DataError(
            f"{given}: has no {MODEL_FILE}, but google/ffn's {', '.join(prefixes)}; give the prefix of one, as "
            f"{Path(given) / prefixes[-1]}"
        )


def _copy(source: Path, folder: Path, own: CheckpointInfo, info: CheckpointInfo) -> None:
    """A checkpoint with what belongs to it, byte by byte where `info` is its own."""
    try:
        folder.mkdir()
        for name in (MODEL_FILE, WEIGHTS_FILE, STATE_FILE):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    except OSError as error:
        raise DataError(f"{source}: cannot be copied to {folder} ({error.strerror or error})") from error
    if info != own:
        info.save(folder / MODEL_FILE)
