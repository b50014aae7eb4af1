"""A picture of what montage did: the tiles as the stage put them, and the section image of the same place beside it.

`python -m apps.montage.picture montage/sections/00000.json tiles.csv before-after.png`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, EnsembleError
from apps.core.files import file_in_the_making
from apps.core.volumes import open_volume
from apps.montage.illumination import Exposure
from apps.montage.images import read_tile
from apps.montage.offsets import Strip
from apps.montage.records import SectionRecord
from apps.montage.table import TileRow, read_table

_GAP = 8  # pixels of white between the two


def before_and_after(record_file: Path, table: Path, size: int, at: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """uint8 [size, 2 * size + gap]: a square of the section before and after, around the pixel `at` of its image.

    By default around a corner where the most tiles meet.  Raises DataError where record, table or image do not fit.
    """
    record = SectionRecord.load(record_file)
    rows = {row.path: row for row in read_table(table).get(record.section, ())}
    if record.shape == (0, 0) or any(tile.path not in rows for tile in record.tiles):
        raise DataError(f"{record_file}: has no image, or is not of {table}; expected the table it was made from")
    image = open_volume(str(record_file.with_suffix(".zarr")))
    tile_shape = read_tile(rows[record.tiles[0].path].file).shape
    positions = np.array([(tile.y, tile.x) for tile in record.tiles])
    middle = np.array(at) if at is not None else _where_most_meet(positions, tile_shape, record.shape)
    extent = np.minimum(size, record.shape)
    first = np.clip(middle - extent // 2, 0, np.array(record.shape) - extent)
    (y0, x0), (height, width) = (tuple(int(value) for value in pair) for pair in (first, extent))
    after = image.read(Box.of((0, y0, x0), (1, height, width)))[0]
    before = np.zeros_like(after)
    exposure = Exposure(record.grey_range, None)
    for tile in record.tiles:
        _paste(before, rows[tile.path], exposure, (y0 + record.origin[0], x0 + record.origin[1]))
    return np.concatenate([before, np.full((height, _GAP), 255, np.uint8), after], axis=1)


def _where_most_meet(
    positions: NDArray[np.float64], shape: tuple[int, ...], extent: tuple[int, int]
) -> NDArray[np.float64]:
    """Of the tiles' first pixels, the one that most tiles hold; the nearest to the middle where several are alike."""
    inside = (positions[:, None] >= positions) & (positions[:, None] < positions + np.array(shape))
    held = inside.all(axis=2).sum(axis=1)
    away = np.linalg.norm(positions - np.array(extent) / 2, axis=1)
    found: NDArray[np.float64] = positions[np.lexsort((away, -held))[0]]
    return found


def _paste(canvas: NDArray[np.uint8], row: TileRow, exposure: Exposure, origin: tuple[float, float]) -> None:
    """Copy a tile to where the stage put it, over what is there; `origin` is the canvas's in stage coordinates."""
    image = read_tile(row.file)
    place = round(row.y - origin[0]), round(row.x - origin[1])
    first = [max(0, p) for p in place]
    end = [min(n, p + m) for n, p, m in zip(canvas.shape, place, image.shape, strict=True)]
    if end[0] <= first[0] or end[1] <= first[1]:
        return
    part = Strip((first[0] - place[0], first[1] - place[1]), (end[0] - place[0], end[1] - place[1]))
    grey = np.clip(np.rint(exposure.correct(image, part)), 0, 255)
    canvas[first[0] : end[0], first[1] : end[1]] = grey


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apps.montage.picture", description=__doc__)
    parser.add_argument("record", type=Path, help="sections/NNNNN.json of a montage")
    parser.add_argument("tiles", type=Path, help="the tile table it was made from")
    parser.add_argument("picture", type=Path, help="PNG or JPEG to write")
    parser.add_argument("--size", type=int, default=400, help="extent of either square, pixels")
    parser.add_argument("--at", type=int, nargs=2, metavar=("Y", "X"), help="its middle in the section image")
    options = parser.parse_args(arguments)
    from PIL import Image

    try:
        at = None if options.at is None else (options.at[0], options.at[1])
        picture = Image.fromarray(before_and_after(options.record, options.tiles, options.size, at))
        with file_in_the_making(options.picture) as partial:
            picture.save(partial, "JPEG" if options.picture.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    except EnsembleError as error:
        print(f"montage picture: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
