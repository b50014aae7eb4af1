"""Volumes: OME-Zarr written and read back, its metadata, google/ffn style HDF5, and inputs that are none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.volumes import (
    content_hash,
    create_shared_volume,
    new_volume,
    open_labels,
    open_volume,
    open_volume_to_write,
    write_volume,
)

VOXELS_NM = (40.0, 4.0, 4.0)


def numbers(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "uint64", "float32"])
def test_round_trip(dtype: str, tmp_path: Path) -> None:
    data = numbers((10, 20, 30), dtype)
    write_volume(tmp_path / "a.zarr", data, VOXELS_NM, chunks=(8, 8, 8))
    volume = open_volume(str(tmp_path / "a.zarr"))
    assert volume.shape == (10, 20, 30)
    assert volume.dtype == data.dtype
    assert volume.voxel_size_nm == VOXELS_NM
    assert volume.box == Box.of((0, 0, 0), (10, 20, 30))
    np.testing.assert_array_equal(volume.read(), data)
    part = volume.read(Box.of((1, 2, 3), (4, 5, 6)))
    assert part.dtype == data.dtype
    np.testing.assert_array_equal(part, data[1:5, 2:7, 3:9])


def test_labels_beyond_32_bits_survive(tmp_path: Path) -> None:
    data = np.full((2, 2, 2), 2**63 + 1, np.uint64)
    write_volume(tmp_path / "a.zarr", data, VOXELS_NM)
    np.testing.assert_array_equal(open_volume(str(tmp_path / "a.zarr")).read(), data)


def test_metadata_is_ome_ngff_0_5(tmp_path: Path) -> None:
    """The rules of the specification's multiscales section, checked on the JSON that other programs read."""
    write_volume(tmp_path / "cells.zarr", numbers((4, 5, 6)), VOXELS_NM)
    group = json.loads((tmp_path / "cells.zarr" / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    ome = group["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert multiscale["name"] == "cells"
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["type"] for axis in multiscale["axes"]} == {"space"}
    assert {axis["unit"] for axis in multiscale["axes"]} == {"nanometer"}
    (level,) = multiscale["datasets"]
    (transformation,) = level["coordinateTransformations"]
    assert transformation == {"type": "scale", "scale": [40.0, 4.0, 4.0]}
    array = json.loads((tmp_path / "cells.zarr" / level["path"] / "zarr.json").read_text())
    assert (array["zarr_format"], array["node_type"]) == (3, "array")
    assert array["dimension_names"] == ["z", "y", "x"]
    assert array["shape"] == [4, 5, 6]


def test_units_become_nanometres(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", numbers((2, 2, 2)), (0.04, 0.004, 0.004))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    ome: Any = group.attrs["ome"]
    for axis in ome["multiscales"][0]["axes"]:
        axis["unit"] = "micrometer"
    group.attrs["ome"] = ome
    assert open_volume(str(tmp_path / "a.zarr")).voxel_size_nm == pytest.approx(VOXELS_NM)


def test_new_volume_is_zero_and_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    with new_volume(target, (9, 9, 9), np.uint32, VOXELS_NM, chunks=(4, 4, 4)) as volume:
        volume.write(Box.of((0, 0, 0), (4, 4, 4)), np.full((4, 4, 4), 7, np.uint32))
        assert not target.exists()
    data = open_volume(str(target)).read()
    assert int(data.sum()) == 7 * 64
    assert int(data[:4, :4, :4].min()) == 7


def test_failed_volume_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="stop"),
        new_volume(tmp_path / "a.zarr", (4, 4, 4), np.uint8, VOXELS_NM) as volume,
    ):
        volume.write(volume.box, np.ones((4, 4, 4), np.uint8))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_users_error(tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk; random voxels do not compress."""
    code = """
import resource
import numpy as np
from apps.core.errors import DataError
from apps.core.volumes import write_volume
data = np.random.default_rng(0).integers(0, 255, (64, 64, 64)).astype("uint8")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_volume("a.zarr", data, (1.0, 1.0, 1.0))
except DataError as error:
    print(error)
"""
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a.zarr: cannot be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_name_must_end_in_zarr(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in \.zarr"):
        write_volume(tmp_path / "volume", numbers((2, 2, 2)), VOXELS_NM)
    assert list(tmp_path.iterdir()) == []


def test_shared_volume_is_filled_by_aligned_writers(tmp_path: Path) -> None:
    data = numbers((8, 8, 10))
    create_shared_volume(tmp_path / "a.zarr", data.shape, data.dtype, VOXELS_NM, chunks=(4, 8, 8))
    for offset in (0, 4):
        writer = open_volume_to_write(tmp_path / "a.zarr")
        box = Box.of((offset, 0, 0), (4, 8, 10))
        assert writer.aligned(box)
        writer.write(box, data[box.slices()])
    np.testing.assert_array_equal(open_volume(str(tmp_path / "a.zarr")).read(), data)


@pytest.mark.parametrize(
    ("offset", "shape", "aligned"),
    [
        ((0, 0, 0), (8, 8, 8), True),
        ((0, 0, 0), (10, 10, 10), True),  # to the volume's end
        ((8, 8, 8), (2, 2, 2), True),
        ((4, 0, 8), (4, 8, 2), True),
        ((0, 0, 0), (8, 8, 9), False),  # shares the last chunk
        ((0, 0, 0), (3, 8, 8), False),
        ((1, 0, 0), (3, 8, 8), False),
    ],
)
def test_alignment(offset: tuple[int, int, int], shape: tuple[int, int, int], aligned: bool, tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", numbers((10, 10, 10)), VOXELS_NM, chunks=(4, 4, 4))
    assert open_volume(str(tmp_path / "a.zarr")).aligned(Box.of(offset, shape)) is aligned


def test_reading_and_writing_outside(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", numbers((4, 4, 4)), VOXELS_NM)
    volume = open_volume_to_write(tmp_path / "a.zarr")
    for box in (Box.of((0, 0, 0), (5, 4, 4)), Box.of((-1, 0, 0), (2, 4, 4)), Box.of((9, 9, 9), (1, 1, 1))):
        with pytest.raises(DataError, match="leaves the volume"):
            volume.read(box)
        with pytest.raises(DataError, match="cannot write"):
            volume.write(box, np.zeros(box.shape, np.uint8))
    with pytest.raises(DataError, match="cannot write"):
        volume.write(volume.box, np.zeros((1, 1, 1), np.uint8))


def test_reading_does_not_open_for_writing(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", numbers((4, 4, 4)), VOXELS_NM)
    volume = open_volume(str(tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match="read-only"):
        volume.write(volume.box, np.zeros((4, 4, 4), np.uint8))


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    """A file with a good dataset, one in a group, and one of each kind of bad."""
    file = tmp_path / "em.h5"
    with h5py.File(file, "w") as handle:
        handle["raw"] = numbers((6, 7, 8))
        handle["volumes/labels"] = numbers((6, 7, 8), "int64")
        handle["flat"] = numbers((7, 8))
        handle["channels"] = numbers((1, 6, 7, 8))
        handle["text"] = np.full((2, 2, 2), b"cell")
        handle["empty"] = np.zeros((0, 7, 8))
        broken = np.ones((6, 7, 8), np.float32)
        broken[5, 6, 7] = np.nan
        handle["nan"] = broken
    return file


def test_hdf5(hdf5: Path) -> None:
    volume = open_volume(f"{hdf5}:raw")
    assert (volume.shape, volume.voxel_size_nm) == ((6, 7, 8), None)
    np.testing.assert_array_equal(volume.read(), numbers((6, 7, 8)))
    np.testing.assert_array_equal(volume.read(Box.of((1, 1, 1), (2, 2, 2))), numbers((6, 7, 8))[1:3, 1:3, 1:3])
    assert open_volume(f"{hdf5}:volumes/labels").dtype == np.int64


def test_hdf5_with_a_colon_in_its_folder(hdf5: Path) -> None:
    folder = hdf5.parent / "a:b"
    folder.mkdir()
    hdf5.rename(folder / "em.h5")
    assert open_volume(f"{folder}/em.h5:raw").shape == (6, 7, 8)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (":absent", r"no dataset 'absent'; it has .*raw"),
        (":volumes", "no dataset 'volumes'"),
        (":", "no dataset ''"),
        ("", "the name of a dataset after a colon"),
        (":flat", "2 dimensions.*expected 3"),
        (":channels", "4 dimensions.*expected 3"),
        (":text", "expected integers or floats"),
        (":empty", "is empty"),
    ],
)
def test_hdf5_without_a_volume(dataset: str, message: str, hdf5: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_volume(f"{hdf5}{dataset}")
    assert "em.h5" in str(caught.value)


def test_nan_is_found_where_it_is_read(hdf5: Path) -> None:
    volume = open_volume(f"{hdf5}:nan")
    assert float(volume.read(Box.of((0, 0, 0), (2, 2, 2))).sum()) == 8
    with pytest.raises(DataError, match="holds NaN"):
        volume.read()


def test_a_damaged_hdf5_chunk_is_named(tmp_path: Path) -> None:
    file = tmp_path / "damaged.h5"
    voxels = np.random.default_rng(0).integers(0, 255, (16, 64, 64), dtype=np.uint8)
    with h5py.File(file, "w") as target:
        target.create_dataset("raw", data=voxels, chunks=(16, 64, 64), compression="gzip")
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.h5:raw: .* cannot be read"):
        open_volume(f"{file}:raw").read()


def test_files_that_are_not_hdf5(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.h5: no such file"):
        open_volume(str(tmp_path / "absent.h5:raw"))
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        open_volume(str(tmp_path / "text.h5:raw"))
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(DataError, match="no such file"):
        open_volume(str(tmp_path / "folder.h5:raw"))


def damage(folder: Path, kind: str) -> None:
    """Turn a good OME-Zarr volume into one that is not."""
    group = zarr.open_group(folder, mode="r+")
    ome: Any = group.attrs["ome"]
    if kind == "no metadata":
        del group.attrs["ome"]
        return
    if kind in ("truncated", "null"):
        (folder / "zarr.json").write_text("{" if kind == "truncated" else "null")
        return
    if kind == "no array":
        ome["multiscales"][0]["datasets"][0]["path"] = "5"
    elif kind == "no levels":
        ome["multiscales"][0]["datasets"] = []
    elif kind == "unit":
        ome["multiscales"][0]["axes"][0]["unit"] = "parsec"
    elif kind == "axes":
        ome["multiscales"][0]["axes"].reverse()
    elif kind == "group":
        group.create_group("7")
        ome["multiscales"][0]["datasets"][0]["path"] = "7"
    elif kind == "scale":
        ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1.0, 1.0]
    group.attrs["ome"] = ome


@pytest.mark.parametrize(
    "kind", ["no metadata", "truncated", "null", "no array", "no levels", "unit", "axes", "group", "scale"]
)
def test_damaged_zarr_is_named(kind: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", numbers((4, 4, 4)), VOXELS_NM)
    damage(tmp_path / "a.zarr", kind)
    with pytest.raises(DataError, match=r"a\.zarr"):
        open_volume(str(tmp_path / "a.zarr"))


def test_folders_that_are_not_zarr(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such volume"):
        open_volume(str(tmp_path / "absent.zarr"))
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(DataError, match="not an OME-Zarr"):
        open_volume(str(tmp_path / "empty.zarr"))
    zarr.create_array(tmp_path / "bare.zarr", shape=(2, 2, 2), dtype="uint8")
    with pytest.raises(DataError, match="not an OME-Zarr"):
        open_volume(str(tmp_path / "bare.zarr"))
    (tmp_path / "file.zarr").write_text("x")
    with pytest.raises(DataError, match="no such volume"):
        open_volume(str(tmp_path / "file.zarr"))


def test_two_dimensional_zarr(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", numbers((4, 4, 4)), VOXELS_NM)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    group.create_array("0", shape=(4, 4), dtype="uint8", overwrite=True)
    with pytest.raises(DataError, match="2 dimensions"):
        open_volume(str(tmp_path / "a.zarr"))


def test_content_hash(tmp_path: Path, hdf5: Path) -> None:
    data = numbers((40, 7, 8))
    write_volume(tmp_path / "a.zarr", data, VOXELS_NM, chunks=(4, 4, 4))
    write_volume(tmp_path / "b.zarr", data, VOXELS_NM, chunks=(16, 8, 8))
    first, second = (open_volume(str(tmp_path / name)) for name in ("a.zarr", "b.zarr"))
    assert content_hash(first) == content_hash(second)
    box = Box.of((3, 0, 0), (34, 7, 8))
    assert content_hash(first, box) == content_hash(second, box) != content_hash(first)
    data[39, 6, 7] += 1
    write_volume(tmp_path / "c.zarr", data, VOXELS_NM)
    assert content_hash(open_volume(str(tmp_path / "c.zarr"))) != content_hash(first)
    write_volume(tmp_path / "d.zarr", numbers((6, 7, 8)), VOXELS_NM)
    assert content_hash(open_volume(str(tmp_path / "d.zarr"))) == content_hash(open_volume(f"{hdf5}:raw"))


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_a_damaged_zarr_chunk_is_named(tmp_path: Path, codec: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (8, 8, 8), dtype=np.uint8)
    write_volume(tmp_path / "em.zarr", voxels, (8, 8, 8))
    if codec == "gzip":  # as others write
        array = zarr.open_group(tmp_path / "em.zarr").create_array(
            "0", data=voxels, compressors=[zarr.codecs.GzipCodec()], overwrite=True
        )
        assert array.shape == voxels.shape
    (chunk,) = (path for path in (tmp_path / "em.zarr").rglob("*") if path.is_file() and path.suffix != ".json")
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=r"em\.zarr: .* cannot be read"):
        open_volume(str(tmp_path / "em.zarr")).read()


def test_labels_are_integers_on_the_grid_of_the_image(tmp_path: Path) -> None:
    for name, shape, dtype in (("image", 4, "uint8"), ("ids", 4, "int32"), ("short", 3, "int32"), ("f", 4, "float32")):
        write_volume(tmp_path / f"{name}.zarr", numbers((shape, 4, 4), dtype), VOXELS_NM)
    image = open_volume(str(tmp_path / "image.zarr"))
    np.testing.assert_array_equal(open_labels(str(tmp_path / "ids.zarr"), image).read(), numbers((4, 4, 4), "int32"))
    with pytest.raises(DataError, match=r"f\.zarr: has dtype float32; expected classes of an integer type"):
        open_labels(str(tmp_path / "f.zarr"), image, "classes")
    with pytest.raises(DataError, match=r"short\.zarr: has shape \(3, 4, 4\); expected .*image\.zarr, \(4, 4, 4\)"):
        open_labels(str(tmp_path / "short.zarr"), image)
