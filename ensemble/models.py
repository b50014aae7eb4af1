"""The model registry: folders with a version and movable aliases.

`<home>/models/NAME/<version>/` holds `checkpoint/` (weights, configuration, normalisation) and `model.json` (what it is
and why it was selected), and is never changed; `<home>/models/NAME/aliases.json` maps an alias to a version.
A model is named `NAME`, `NAME:3` or `NAME@alias`; `NAME` alone means `NAME@champion`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import folder_in_the_making
from apps.core.parameters import Parameters, write_json
from ensemble.campaigns import check_name

CHAMPION = "champion"
MODEL_FILE = "model.json"
CHECKPOINT = "checkpoint"
ALIASES_FILE = "aliases.json"


class Model(Parameters, frozen=True, kw_only=True):
    """A registered model's own page."""

    name: str
    version: Annotated[int, Meta(ge=1)]
    created: Annotated[float, Meta(description="UTC epoch seconds")]
    campaign: Annotated[str | None, Meta(description="campaign whose search made it; null: it is from elsewhere")] = (
        None
    )
    checksum: Annotated[str, Meta(description="SHA-256 over the checkpoint's files, in order of name")]
    voxel_size_nm: Annotated[
        tuple[float, float, float] | None, Meta(description="voxel size zyx it was trained at; null: nobody said")
    ]
    image_mean: float
    image_std: float
    inference: Annotated[dict[str, Any], Meta(description="inference settings it was scored with")]
    row: Annotated[dict[str, Any], Meta(description="the row of the results table that selected it; empty: none did")]
    reason: Annotated[str, Meta(description="why it was selected, or where it is from")]


def model_folder(home: Path, model: Model) -> Path:
    return home / "models" / model.name / str(model.version)


def checkpoint_of(home: Path, model: Model) -> Path:
    """The model's checkpoint folder.  Raises DataError where its files are not those that were registered."""
    folder = model_folder(home, model) / CHECKPOINT
    if not folder.is_dir() or checksum(folder) != model.checksum:
        raise DataError(f"{folder}: is not the checkpoint that was registered; register model {model.name} anew")
    return folder


def register_model(
    home: Path,
    name: str,
    checkpoint: Path,
    *,
    row: dict[str, Any],
    reason: str,
    inference: dict[str, Any],
    normalisation: tuple[float, float],
    voxel_size_nm: tuple[float, float, float] | None,
    campaign: str | None = None,
    pointing: Sequence[str] = (CHAMPION,),
) -> Model:
    """Copy a checkpoint folder into the registry as the next version, and point the aliases `pointing` at it.

    The same checkpoint with the same settings, registered again, is the version it was: nothing new is made.
    Raises ParameterError for a bad name, DataError where the checkpoint is missing or the disk is full; the registry is
    then as before.
    """
    check_names(name, pointing)
    if not checkpoint.is_dir():
        raise DataError(f"{checkpoint}: no such checkpoint folder; was the trial's output deleted?")
    digest = checksum(checkpoint)
    inference = json.loads(json.dumps(inference))  # as it will be read: lists for tuples
    with _registry_lock(home, name):
        wanted = (digest, inference, voxel_size_nm)
        same = [m for m in versions(home, name) if (m.checksum, m.inference, m.voxel_size_nm) == wanted]
        model = same[-1] if same else None
        if model is None:
            model = Model(
                name=name,
                version=max((m.version for m in versions(home, name)), default=0) + 1,
                created=time.time(),
                campaign=campaign,
                checksum=digest,
                voxel_size_nm=voxel_size_nm,
                image_mean=normalisation[0],
                image_std=normalisation[1],
                inference=inference,
                row=row,
                reason=reason,
            )
            with folder_in_the_making(model_folder(home, model)) as folder:
                _copy(checkpoint, folder / CHECKPOINT)
                model.save(folder / MODEL_FILE)
        if pointing:
            moved = dict.fromkeys(pointing, model.version)
            write_json(home / "models" / name / ALIASES_FILE, {**aliases(home, name), **moved})
    return model


def check_names(name: str, pointing: Sequence[str]) -> None:
    """Raise ParameterError unless a model can have this name and these aliases."""
    check_name(name, "model")
    for alias in pointing:
        check_name(alias, "alias")


def find_model(home: Path, reference: str) -> Model:
    """The model that `NAME`, `NAME:VERSION` or `NAME@ALIAS` names.  Raises StateError with what there is otherwise."""
    name, version = _parse(reference)
    if not name or name not in list_names(home):
        raise StateError(f"model {reference!r}: no such model; there are: {', '.join(list_names(home)) or 'none'}")
    if isinstance(version, str):
        known = aliases(home, name)
        if version not in known:
            raise StateError(f"model {name}: has no alias {version!r}; it has: {', '.join(known) or 'none'}")
        version = known[version]
    file = home / "models" / name / str(version) / MODEL_FILE
    if not file.is_file():
        numbers = ", ".join(str(m.version) for m in versions(home, name))
        raise StateError(f"model {name}: has no version {version}; it has: {numbers}")
    return Model.load(file)


def list_names(home: Path) -> list[str]:
    """Names of all models in the registry."""
    return sorted({path.parent.parent.name for path in (home / "models").glob(f"*/*/{MODEL_FILE}")})


def versions(home: Path, name: str) -> list[Model]:
    """All versions of a model, oldest first."""
    files = (home / "models" / name).glob(f"*/{MODEL_FILE}")
    return sorted((Model.load(file) for file in files if not file.parent.name.startswith(".")), key=lambda m: m.version)


def aliases(home: Path, name: str) -> dict[str, int]:
    """Alias -> version."""
    file = home / "models" / name / ALIASES_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def checksum(folder: Path) -> str:
    """SHA-256 over the relative names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _copy(checkpoint: Path, target: Path) -> None:
    """Copy a folder's files; copytree would keep only the text of an error, and not that it is a full disk's."""
    for file in _files(checkpoint):
        copied = target / file.relative_to(checkpoint)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _parse(reference: str) -> tuple[str, int | str]:
    if "@" in reference:
        name, _, alias = reference.partition("@")
        return name, alias
    name, _, version = reference.partition(":")
    if not version:
        return name, CHAMPION
    if not version.isdigit():
        raise ParameterError(f"model {reference!r}: expected NAME, NAME:VERSION (a number) or NAME@ALIAS")
    return name, int(version)


@contextmanager
def _registry_lock(home: Path, name: str) -> Iterator[None]:
    folder = home / "models" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}); give a writable --home") from error
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
