"""Files of pairs and meshes: written under a temporary name and renamed, each with the hash of all it depends on."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.alignment.matching import Matches
from apps.alignment.transforms import Grid, Mesh, Rigid
from apps.core.errors import DataError
from apps.core.files import make_folder, write_atomically
from apps.core.parameters import json_hash


@dataclass(frozen=True)
class StoredMesh:
    """A mesh, with the hash of what it was made from, and of what it is."""

    mesh: Mesh
    identity: str
    content: str


def pair_path(output: Path, a: int, b: int) -> Path:
    return output / "pairs" / f"{a:05d}-{b:05d}.npz"


def mesh_path(output: Path, section: int) -> Path:
    return output / "meshes" / f"{section:05d}.npz"


def save_matches(path: Path, matches: Matches, identity: str) -> None:
    _save(
        path,
        identity,
        first=matches.first,
        second=matches.second,
        weight=matches.weight,
        rigid=np.array([matches.rigid.angle, *matches.rigid.shift]),
        quality=np.array([matches.coarse_correlation, matches.matched, matches.correlation, matches.accepted]),
    )


def load_matches(path: Path, identity: str) -> Matches | None:
    """The matches; None where there are none that were made from just that."""
    found = _load(path)
    if found is None or str(found["identity"]) != identity:
        return None
    coarse, matched, correlation, accepted = (float(v) for v in found["quality"])
    points = found["first"], found["second"], found["weight"]
    return Matches(*points, _rigid(found["rigid"]), coarse, matched, correlation, bool(accepted))


def save_mesh(path: Path, mesh: Mesh, identity: str) -> StoredMesh:
    """Write vertices [gy, gx, 2] and their displacements into the aligned frame, (y, x) pixels."""
    vertices = mesh.vertices
    _save(
        path,
        identity,
        vertices=vertices,
        displacements=mesh(vertices) - vertices,
        rigid=np.array([mesh.rigid.angle, *mesh.rigid.shift]),
        springs=mesh.grid.values,
        spacing=np.array(mesh.grid.spacing),
    )
    return StoredMesh(mesh, identity, mesh_content(mesh))


def load_mesh(path: Path) -> StoredMesh | None:
    """The mesh; None where there is none."""
    found = _load(path)
    if found is None:
        return None
    mesh = Mesh(_rigid(found["rigid"]), Grid(0.0, float(found["spacing"]), found["springs"]))
    return StoredMesh(mesh, str(found["identity"]), mesh_content(mesh))


def mesh_content(mesh: Mesh) -> str:
    """Hash of what the mesh is."""
    values = np.concatenate([[mesh.rigid.angle, *mesh.rigid.shift, mesh.grid.spacing], mesh.grid.values.ravel()])
    return json_hash([values.tobytes().hex(), list(mesh.grid.values.shape)])


def _rigid(values: NDArray[np.float64]) -> Rigid:
    return Rigid(float(values[0]), (float(values[1]), float(values[2])))


def _save(path: Path, identity: str, **arrays: NDArray[Any]) -> None:
    make_folder(path.parent)
    stream = io.BytesIO()
    np.savez_compressed(stream, identity=np.array(identity), **arrays)  # type: ignore[arg-type]
    write_atomically(path, stream.getvalue())


def _load(path: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it and run again") from error
