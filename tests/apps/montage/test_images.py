"""Tile images: what can be read, what is refused, and that the cache keeps to its bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from apps.core.errors import DataError
from apps.montage import images
from apps.montage.images import NotGreyError, TileReader, read_tile

RAMP = np.arange(600, dtype=np.uint16).reshape(20, 30)


@pytest.mark.parametrize("name", ["tile.tif", "tile.png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_and_png_of_8_and_16_bits_come_back_exactly(tmp_path: Path, name: str, dtype: type) -> None:
    image: NDArray[Any] = (RAMP % 251 if dtype == np.uint8 else RAMP * 100).astype(dtype)
    file = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(file, image, byteorder=">", compression="zlib")
    else:
        Image.fromarray(image).save(file)
    read = read_tile(file)
    assert read.dtype == dtype and np.array_equal(read, image)


def test_what_cannot_be_decoded_is_said(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-40])
    tifffile.imwrite(tmp_path / "cut.tif", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:2000])
    (tmp_path / "text.tif").write_text("this is no image")
    for name in ("cut.png", "cut.tif", "text.tif"):
        with pytest.raises(DataError, match=f"{name}: cannot be decoded"):
            read_tile(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_tile(tmp_path / "none.tif")


def test_colour_stacks_and_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "colour.png")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((8, 8), np.float32))
    for name in ("colour.png", "stack.tif", "float.tif"):
        with pytest.raises(NotGreyError, match="one grey plane"):
            read_tile(tmp_path / name)


def test_the_cache_reads_once_and_keeps_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{n}.tif" for n in range(3)]
    for n, file in enumerate(files):
        tifffile.imwrite(file, np.full((10, 10), n, np.uint8))
    reads: list[str] = []

    def counted(file: Path) -> images.Tile:
        reads.append(file.name)
        return read_tile(file)

    monkeypatch.setattr(images, "read_tile", counted)
    reader = TileReader(200)
    with ThreadPoolExecutor(4) as pool:
        assert [int(tile[0, 0]) for tile in pool.map(reader.read, [files[0]] * 8)] == [0] * 8
    assert reads == ["0.tif"]
    for n in (1, 0, 2, 0, 1):  # 2 puts 1 out, as 0 was read since
        assert reader.read(files[n])[0, 0] == n
    assert reads == ["0.tif", "1.tif", "2.tif", "1.tif"]
    unbounded = TileReader(0)
    unbounded.read(files[0]), unbounded.read(files[0])
    assert reads[4:] == ["0.tif", "0.tif"]
