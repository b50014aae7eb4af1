"""Segmentations in the files that google/ffn's inference writes: `<folder>/<x>/<y>/seg-<x>_<y>_<z>.npz`.

A file holds one subvolume: `segmentation` (integers zyx), `origins` (a pickled dictionary id -> OriginInfo: seed zyx
within the subvolume, FOV steps, seconds), `request` (the run's InferenceRequest, a serialised protocol buffer),
`counters` (JSON) and `overlaps` (a pickled dictionary id -> ids and voxel counts of what the object overlapped).
Results of consensus hold the first two only.  The name gives the corner in xyz; all else is zyx.

Pickles are read with `apps.ffn.restricted_pickle`: nothing in a file is executed.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError
from apps.core.files import make_folder, write_atomically
from apps.ffn.restricted_pickle import RecordType, dump_records, load_restricted

_NAME = re.compile(r"(\d+)_(\d+)_(\d+)\.npz$")

# Where the class of an origin comes from: google/ffn's module and how its programs see it from within, and, in what its
# authors published, a module of their own.  It is never imported, so the root decides.
_ORIGIN_CLASS = "OriginInfo"
_ORIGIN_MODULE = "ffn.inference.storage"
_ORIGIN_MODULES = re.compile(r"(ffn|google3)(\.\w+)+|(inference\.)?storage")


class Origin(NamedTuple):
    """How an object came to be: its seed zyx within the subvolume, FOV steps, seconds; google/ffn's OriginInfo."""

    zyx: Triple
    steps: int
    seconds: float


@dataclass(frozen=True)
class GoogleResult:
    """One subvolume.

    Attributes:
        labels: zyx, unsigned integers as in the file; 0 is no object.
        origins: by id; results of other tools than inference may lack some.
        corner: first voxel zyx of the subvolume in the volume.
        counters: google/ffn's names and counts; empty where the file has none.
        request: the serialised InferenceRequest (`apps.ffn.google_request` reads it); empty where the file has none.
        overlaps: by id: [2, n] ids and voxel counts of the earlier objects that the object overlapped.
    """

    labels: NDArray[Any]
    origins: dict[int, Origin]
    corner: Triple
    counters: dict[str, float] = field(default_factory=dict)
    request: bytes = b""
    overlaps: dict[int, NDArray[np.int64]] = field(default_factory=dict)


def result_path(folder: str | Path, corner: Triple) -> Path:
    """Where google/ffn looks for the subvolume whose first voxel is `corner` zyx."""
    z, y, x = corner
    return Path(folder) / str(x) / str(y) / f"seg-{x}_{y}_{z}.npz"


def corner_of(path: str | Path) -> Triple | None:
    """Corner zyx that the name of a result says; None where it says none."""
    match = _NAME.search(Path(path).name)
    if match is None:
        return None
    x, y, z = (int(text) for text in match.groups())
    return z, y, x


def find_results(folder: str | Path) -> list[Path]:
    """Results in a folder of google/ffn's, in its present (`x/y/seg-...`) and older (flat) layout, by corner."""
    root = Path(folder)
    found = [*root.glob("seg-*_*_*.npz"), *root.glob("*/*/seg-*_*_*.npz")]
    return sorted((path for path in found if corner_of(path)), key=lambda path: (corner_of(path), path))


def read_google_result(path: str | Path, corner: Triple | None = None) -> GoogleResult:
    """Read one file.

    Args:
        corner: zyx, for a file whose name does not say it.

    Raises DataError that names the file where it is missing, damaged, truncated, of other content, has no corner, or
    its pickles ask for anything but data.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected a google/ffn result, seg-X_Y_Z.npz")
    corner = corner or corner_of(file)
    if corner is None:
        raise DataError(f"{file}: its name does not say its corner (seg-X_Y_Z.npz); give the corner")
    try:
        with zipfile.ZipFile(file) as archive:
            arrays = {
                name: _read_member(archive, name, file)
                for name in ("segmentation", "origins", "counters", "request", "overlaps")
                if f"{name}.npy" in archive.namelist()
            }
    except DataError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise DataError(
            f"{file}: is damaged or no google/ffn result ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if "segmentation" not in arrays:
        raise DataError(f"{file}: holds no segmentation; expected a google/ffn result, seg-X_Y_Z.npz")
    try:
        return GoogleResult(
            labels=_check_labels(arrays["segmentation"]),
            origins=_origins(arrays.get("origins")),
            corner=corner,
            counters=_counters(arrays.get("counters")),
            request=_bytes(arrays.get("request")),
            overlaps=_overlaps(arrays.get("overlaps")),
        )
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{file}: is no google/ffn result ({error})") from error


def write_google_result(
    folder: str | Path,
    corner: Triple,
    labels: NDArray[Any],
    origins: Mapping[int, Origin],
    counters: Mapping[str, float] | None = None,
    request: bytes = b"",
    overlaps: Mapping[int, NDArray[np.int64]] | None = None,
) -> Path:
    """Write a subvolume where google/ffn's tools find it, atomically; returns the file.

    The same content gives the same bytes.  Labels zyx are stored in the fewest bits that hold them, as google/ffn does.
    Raises DataError where labels are not 3-D unsigned, or the folder is not writable.
    """
    if labels.ndim != 3 or labels.dtype.kind not in "ui" or (labels.size and labels.min() < 0):
        raise DataError(f"labels of shape {labels.shape}, {labels.dtype}: expected three axes and no negative integers")
    if min(corner) < 0:
        raise DataError(f"corner {corner}: google/ffn's file names hold no negative coordinates")
    dtype = np.min_scalar_type(int(labels.max()) if labels.size else 0)
    infos = {int(id): _origin(*origin) for id, origin in origins.items()}
    members = {
        "segmentation": _npy(labels.astype(dtype)),
        "origins": _pickled_npy(infos),
        "request": _npy(np.array(request)),
        "counters": _npy(np.array(json.dumps(dict(counters or {})))),
        "overlaps": _pickled_npy({int(id): np.asarray(pairs) for id, pairs in (overlaps or {}).items()}),
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            # A fixed date: the same content, the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data, zipfile.ZIP_DEFLATED)
    path = result_path(folder, corner)
    make_folder(path.parent)
    write_atomically(path, stream.getvalue())
    return path


def _find_record(module: str, name: str) -> RecordType | None:
    known = name == _ORIGIN_CLASS and _ORIGIN_MODULES.fullmatch(module)
    return _origin if known else None


def _origin(zyx: Any, steps: Any, seconds: Any) -> Origin:
    z, y, x = (int(value) for value in zyx)
    return Origin((z, y, x), int(steps), float(seconds))


def _read_member(archive: zipfile.ZipFile, name: str, file: Path) -> Any:
    with archive.open(f"{name}.npy") as stream:
        if not _header(stream).hasobject:
            with archive.open(f"{name}.npy") as whole:
                return np.lib.format.read_array(whole, allow_pickle=False)
        # The pickled array, 0-d; load its one object.
        loaded = load_restricted(stream, f"{file}: {name}", _find_record)
        return loaded.item() if isinstance(loaded, np.ndarray) and loaded.size == 1 else loaded


def _header(stream: IO[bytes]) -> np.dtype[Any]:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"has an array of format {version}")
    dtype: np.dtype[Any] = read(stream)[2]
    return dtype


def _check_labels(labels: Any) -> NDArray[Any]:
    if not isinstance(labels, np.ndarray) or labels.ndim != 3 or labels.dtype.kind not in "ui":
        raise ValueError(f"its segmentation is {_describe(labels)}, not integers in three axes")
    if labels.dtype.kind == "i":
        # -1 marks a voxel as tried in files written before the end of a run.
        return np.maximum(labels, 0).astype(labels.dtype.str.replace("i", "u"))
    return labels


def _origins(value: Any) -> dict[int, Origin]:
    if value is None:
        return {}
    return {int(id): item if isinstance(item, Origin) else _origin(*item) for id, item in value.items()}


def _overlaps(value: Any) -> dict[int, NDArray[np.int64]]:
    if not isinstance(value, dict):
        return {}
    return {int(id): np.asarray(pairs).astype(np.int64).reshape(2, -1) for id, pairs in value.items()}


def _counters(value: Any) -> dict[str, float]:
    text = _bytes(value)
    counters = json.loads(text) if text else {}
    return {str(name): float(count) for name, count in counters.items()}


def _bytes(value: Any) -> bytes:
    content = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if content is None:
        return b""
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, bytes):
        return content
    raise ValueError(f"holds {_describe(value)} where text belongs")


def _describe(value: Any) -> str:
    return f"an array {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _pickled_npy(value: Any) -> bytes:
    """The .npy file of a 0-d array that holds the one object."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    array = np.empty((), object)
    array[()] = value
    stream.write(dump_records(array, {Origin: (_ORIGIN_MODULE, _ORIGIN_CLASS)}))
    return stream.getvalue()
