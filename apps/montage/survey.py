"""The first look at a section's tiles: which can be used, and what illumination and grey range need to know of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.montage.filters import Floats
from apps.montage.images import NotGreyError, TileReader
from apps.montage.offsets import Extent
from apps.montage.records import Fault
from apps.montage.table import TileRow, holes
from apps.montage.workers import Workers

GRID = 32  # cells along either axis on which illumination is estimated
_SAMPLES = 2**14  # pixels of a tile that tell its grey range
_LOW, _HIGH = 0.1, 99.9  # percent of the pixels that become 0 and 255 at least
_BLANK = 1.0  # grey levels of 255: a tile with less spread holds nothing


@dataclass(frozen=True)
class SurveyedTile:
    """A tile that can be read.

    Attributes:
        row: its row of the table.
        shape: (rows, columns).
        depth: 8 or 16 bits.
        grid: float32 [GRID, GRID] of the tile's means, in its own values.
        low, high: values that few pixels are beyond.
        spread: standard deviation, in its own values.
        digest: of its pixels.
    """

    row: TileRow
    shape: Extent
    depth: int
    grid: Floats
    low: float
    high: float
    spread: float
    digest: str


@dataclass(frozen=True)
class SurveyedSection:
    """The section's tiles that can be used, one shape all, in the table's order, and the faults of the others.

    twins: later -> earlier index in `tiles` of two with the same pixels.
    """

    section: int
    tiles: tuple[SurveyedTile, ...]
    twins: dict[int, int]
    faults: tuple[Fault, ...]


def survey_section(section: int, rows: tuple[TileRow, ...], workers: Workers) -> SurveyedSection:
    """Read all tiles of a section once."""
    rows, faults = _distinct(rows)
    for y, x in holes(rows):
        message = f"section {section}: the table has no tile at about (x {x:.0f}, y {y:.0f}), and tiles on both sides"
        faults.append(Fault(kind="absent_tile", path=None, message=message))
    found: list[SurveyedTile] = []
    for answer in workers.map(_survey_tile, rows):
        if isinstance(answer, Fault):
            faults.append(answer)
        else:
            found.append(answer)
    shapes = Counter(tile.shape for tile in found)
    shape = shapes.most_common(1)[0][0] if shapes else (0, 0)
    for tile in found:
        if tile.shape != shape:
            faults.append(
                _fault(
                    "wrong_size", tile, f"is {tile.shape}, most tiles of the section are {shape} pixels; it is left out"
                )
            )
    found = [tile for tile in found if tile.shape == shape]
    kept = [tile for tile in found if tile.spread >= _BLANK * _unit(tile)]
    faults += [
        _fault("blank_tile", tile, f"has a spread of {tile.spread:.3g} values, it shows nothing; it is left out")
        for tile in found
        if tile.spread < _BLANK * _unit(tile)
    ]
    shallow = sum(tile.depth == 8 for tile in kept)
    if 0 < shallow < len(kept):
        odd = 16 if 2 * shallow >= len(kept) else 8
        faults += [
            _fault("mixed_depth", tile, f"has {odd} bits, most of the section has other; it is scaled to its own range")
            for tile in kept
            if tile.depth == odd
        ]
    if not kept:
        message = f"none of its {len(rows)} tiles can be used; there is no image of it"
        faults.append(Fault(kind="blank_section", path=None, message=f"section {section}: {message}"))
    return SurveyedSection(section, tuple(kept), _twins(kept), tuple(faults))


def grey_range(tiles: list[SurveyedTile]) -> tuple[float, float] | None:
    """Values of the 16-bit tiles that are to become 0 and 255; None where all have 8 bits."""
    deep = [tile for tile in tiles if tile.depth == 16]
    if not deep:
        return None
    low, high = (float(np.median([getattr(tile, end) for tile in deep])) for end in ("low", "high"))
    return low, max(high, low + 1)


def _distinct(rows: tuple[TileRow, ...]) -> tuple[tuple[TileRow, ...], list[Fault]]:
    """The rows without those that say a thing twice: of two images of one place the later in the table is taken."""
    faults = []
    by_path: dict[str, TileRow] = {}
    for row in rows:
        if row.path in by_path:
            first = by_path[row.path]
            where = f"also stands at (x {row.x:g}, y {row.y:g})"
            faults.append(
                Fault(
                    kind="repeated_row",
                    path=row.path,
                    message=f"{row.path}: {where}; its first row, (x {first.x:g}, y {first.y:g}), is taken",
                )
            )
        else:
            by_path[row.path] = row
    by_place: dict[tuple[float, float], TileRow] = {}
    for row in by_path.values():
        earlier = by_place.get((row.y, row.x))
        if earlier is not None:
            faults.append(
                Fault(
                    kind="superseded_tile",
                    path=earlier.path,
                    message=f"{earlier.path}: lies where {row.path} does, which is later in the table and taken",
                )
            )
        by_place[row.y, row.x] = row
    kept = {row.path for row in by_place.values()}
    return tuple(row for row in by_path.values() if row.path in kept), faults


def _survey_tile(reader: TileReader, row: TileRow) -> SurveyedTile | Fault:
    try:
        image = reader.read(row.file)
    except FileNotFoundError:
        return Fault(kind="missing_file", path=row.path, message=f"{row.path}: no such file; it is left out")
    except NotGreyError as error:
        return Fault(kind="not_grey", path=row.path, message=f"{error}; it is left out")
    except DataError as error:
        return Fault(kind="unreadable_file", path=row.path, message=f"{error}; it is left out")
    step = max(1, int((image.size / _SAMPLES) ** 0.5))
    sample = image[step // 2 :: step, step // 2 :: step]
    low, high = (float(value) for value in np.percentile(sample, (_LOW, _HIGH)))
    return SurveyedTile(
        row=row,
        shape=(image.shape[0], image.shape[1]),
        depth=8 * image.dtype.itemsize,
        grid=_grid_means(image),
        low=low,
        high=high,
        spread=float(sample.std(dtype=np.float64)),
        digest=hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest(),
    )


def _grid_means(image: NDArray[np.generic]) -> Floats:
    """Means of GRID x GRID cells (fewer where the image is smaller than that)."""
    sums = np.asarray(image)
    counts = []
    for axis in (0, 1):
        edges = np.linspace(0, image.shape[axis], min(GRID, image.shape[axis]) + 1).astype(np.intp)
        sums = np.add.reduceat(sums, edges[:-1], axis=axis, dtype=np.float64 if axis else np.uint32)
        counts.append(np.diff(edges))
    return np.asarray(sums / np.multiply.outer(*counts), np.float32)


def _unit(tile: SurveyedTile) -> float:
    """One grey level of 255, in the tile's own values."""
    return 1.0 if tile.depth == 8 else max(1.0, (tile.high - tile.low) / 255)


def _twins(tiles: list[SurveyedTile]) -> dict[int, int]:
    first: dict[str, int] = {}
    twins = {}
    for index, tile in enumerate(tiles):
        if tile.digest in first:
            twins[index] = first[tile.digest]
        else:
            first[tile.digest] = index
    return twins


def _fault(kind: str, tile: SurveyedTile, message: str) -> Fault:
    return Fault.from_json({"kind": kind, "path": tile.row.path, "message": f"{tile.row.path}: {message}"})
