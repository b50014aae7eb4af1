"""The section image: tiles at their places to a part of a pixel, blended, and the same whatever its chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from apps.montage.illumination import Exposure
from apps.montage.images import TileReader
from apps.montage.render import RenderTile, plan_pieces, render_piece, section_extent
from apps.montage.table import TileRow
from tests.apps.montage.samples import cut

PLAIN = Exposure(None, None)


def drawn(
    folder: Path, images: list[np.ndarray], positions: list[tuple[float, float]], chunk: int, blend: int = 3
) -> np.ndarray:
    tiles = []
    for index, (image, position) in enumerate(zip(images, positions, strict=True)):
        file = folder / f"{index}.tif"
        tifffile.imwrite(file, image)
        tiles.append(RenderTile(TileRow(file.name, file, 0, 0.0, 0.0), position, 1.0, 0.0))
    shape = images[0].shape[0], images[0].shape[1]
    origin, extent = section_extent(np.array(positions), shape)
    assert origin == (0, 0)
    section, reader = np.zeros(extent, np.uint8), TileReader(0)
    for piece in plan_pieces(extent, chunk, tuple(tiles), shape, PLAIN, 128.0, blend):
        section[piece.part.slices()] = render_piece(reader, piece)
    return section


def test_extent_holds_the_pixels_that_tiles_reach() -> None:
    assert section_extent(np.array([(-2.5, 4.0), (3.25, 10.5)]), (10, 20)) == ((-3, 4), (16, 26))


def test_a_tile_on_whole_pixels_is_copied_and_black_stays_apart_from_no_tile(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    image[3, 3] = 0
    section = drawn(tmp_path, [image, image], [(0.0, 0.0), (30.0, 0.0)], 16)
    assert np.array_equal(section[:20], np.maximum(image, 1))
    assert np.array_equal(section[20:30], np.zeros((10, 24))) and section[3, 3] == 1


def test_constant_tiles_blend_to_a_ramp(tmp_path: Path) -> None:
    images = [np.full((8, 20), 100, np.uint8), np.full((8, 20), 200, np.uint8)]
    row = drawn(tmp_path, images, [(0.0, 0.0), (0.0, 12.0)], 16, blend=7)[4].astype(int)
    assert (row[:12] == 100).all() and (row[20:] == 200).all()
    # 8 pixels overlap: shares (8 - k)/8 and (k + 1)/8 of 100 and 200
    assert list(row[12:20]) == [round(100 + 100 * (k + 1) / 9) for k in range(8)]


@pytest.mark.parametrize("chunk", [16, 50, 1000])
def test_chunks_do_not_show(tmp_path: Path, chunk: int) -> None:
    section = cut(extent=60, overlap=16, grid=(2, 2), jitter=3, seed=1)
    positions = [(float(y), float(x)) for y, x in section.true - np.floor(section.true.min(axis=0))]
    images: list[np.ndarray] = list(section.tiles)
    whole = drawn(tmp_path, images, positions, 4096, blend=6)
    assert np.array_equal(drawn(tmp_path, images, positions, chunk, blend=6), whole)


def test_a_tile_between_pixels_is_moved_by_the_part_of_a_pixel(tmp_path: Path) -> None:
    x = np.arange(40.0)
    wave = np.rint(128 + 100 * np.sin(x / 4)).astype(np.uint8)
    section = drawn(tmp_path, [np.tile(wave, (12, 1))], [(0.0, 0.4)], 16)
    expected = 128 + 100 * np.sin((np.arange(1, 40) - 0.4) / 4)
    assert section.shape == (12, 40)
    assert np.abs(section[6, 2:-2] - expected[1:-2]).max() < 1.5
