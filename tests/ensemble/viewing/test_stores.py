"""What a viewer can show, and what is refused before anything is served."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from apps.core.errors import DataError, ParameterError
from apps.core.volumes import write_volume
from benchmarks.viewing import write_sparse_pyramid
from ensemble.viewing import Stores, open_stores
from ensemble.viewing.glance import SEGMENTS, glance_at, grey_range
from tests.ensemble.viewing.samples import BALLS, SHAPE, VOXEL, synapse_table, write_stores

INFO = {
    "type": "segmentation",
    "data_type": "uint64",
    "num_channels": 1,
    "scales": [
        {"key": "8_8_16", "size": [64, 60, 32], "resolution": [8, 8, 16], "voxel_offset": [3, 2, 1]},
        {"key": "16_16_16", "size": [32, 30, 32], "resolution": [16, 16, 16], "voxel_offset": [1, 1, 1]},
    ],
}


def test_all_kinds_of_stores_are_opened(tmp_path: Path) -> None:
    opened = open_stores(write_stores(tmp_path))
    assert opened.image is not None and opened.image.shape == SHAPE and opened.image.voxel_size_nm == VOXEL
    assert opened.grid is opened.image
    assert set(opened.folders) == {"image", "segmentation", "labels", "meshes", "skeletons"}
    assert opened.synapses is not None and len(opened.synapses) == 3


def test_precomputed_volume_is_opened_in_zyx(tmp_path: Path) -> None:
    (tmp_path / "info").write_text(json.dumps(INFO))
    volume = open_stores(Stores(segmentation=str(tmp_path))).segmentation
    assert volume is not None
    assert (volume.format, volume.shape, volume.levels) == ("precomputed", (32, 60, 64), 2)
    assert (volume.voxel_size_nm, volume.origin) == ((16.0, 8.0, 8.0), (1.0, 2.0, 3.0))


def test_place_and_levels_of_a_zarr_are_read(tmp_path: Path) -> None:
    write_sparse_pyramid(tmp_path / "big.zarr", 2048, written=1)
    file = tmp_path / "big.zarr" / "zarr.json"
    document = json.loads(file.read_text())
    first = document["attributes"]["ome"]["multiscales"][0]["datasets"][0]
    first["coordinateTransformations"][1]["translation"] = [80.0, 0.0, 40.0]
    file.write_text(json.dumps(document))
    volume = open_stores(Stores(image=str(tmp_path / "big.zarr"))).image
    assert volume is not None
    assert (volume.origin, volume.levels, volume.slow) == ((10.0, 0.0, 5.0), 6, False)


def test_large_volume_without_levels_is_slow(tmp_path: Path) -> None:
    write_volume(tmp_path / "long.zarr", np.ones((1, 1, 1025), np.uint8), VOXEL)
    assert open_stores(Stores(image=str(tmp_path / "long.zarr"))).grid.slow


def test_nothing_to_view_is_refused() -> None:
    with pytest.raises(ParameterError, match="nothing to view"):
        Stores(synapses="synapses.parquet")
    with pytest.raises(ParameterError, match="are of a segmentation"):
        Stores(image="image.zarr", meshes="meshes")


def test_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.zarr: no such volume"):
        open_stores(Stores(image=str(tmp_path / "gone.zarr")))
    stores = write_stores(tmp_path)
    for name in ("meshes", "skeletons", "synapses"):
        with pytest.raises(DataError, match="nowhere"):
            open_stores(Stores.from_json({**stores.to_dict(), name: str(tmp_path / "nowhere")}))


def test_ids_have_to_be_integers(tmp_path: Path) -> None:
    write_volume(tmp_path / "grey.zarr", np.ones((4, 4, 4), np.float32), VOXEL)
    assert open_stores(Stores(image=str(tmp_path / "grey.zarr"))).image is not None
    with pytest.raises(DataError, match=r"grey\.zarr: has dtype float32; expected integers"):
        open_stores(Stores(segmentation=str(tmp_path / "grey.zarr")))


def test_what_the_viewer_cannot_read_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "double.zarr", np.ones((4, 4, 4)), VOXEL)
    with pytest.raises(DataError, match="float64, which the viewer cannot read"):
        open_stores(Stores(image=str(tmp_path / "double.zarr")))
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["raw"] = np.ones((4, 4, 4), np.uint8)
    with pytest.raises(DataError, match="`ingest` makes OME-Zarr"):
        open_stores(Stores(image=f"{tmp_path}/old.h5:raw"))


@pytest.mark.parametrize("content", ["{", "[]", '{"@type": "neuroglancer_skeletons"}'])
def test_wrong_mesh_folder_is_refused(tmp_path: Path, content: str) -> None:
    stores = write_stores(tmp_path)
    (tmp_path / "meshes" / "info").write_text(content)
    with pytest.raises(DataError, match="meshes/info"):
        open_stores(stores)


@pytest.mark.parametrize("change", [{"num_channels": 3}, {"scales": []}, {"data_type": "colour"}])
def test_wrong_precomputed_volume_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "info").write_text(json.dumps(INFO | change))
    with pytest.raises(DataError, match="describes no 3-D volume"):
        open_stores(Stores(image=str(tmp_path)))


def test_table_without_columns_is_refused(tmp_path: Path) -> None:
    stores = write_stores(tmp_path)
    synapse_table(3).drop(columns=["post"]).to_parquet(tmp_path / "synapses.parquet")
    with pytest.raises(DataError, match=r"synapses\.parquet: lacks the columns post"):
        open_stores(stores)


def test_glance_names_the_largest_objects_that_have_meshes(tmp_path: Path) -> None:
    stores = write_stores(tmp_path)
    small, large = sorted(BALLS)  # by id; the second is the larger ball too
    assert glance_at(open_stores(stores)).segments == (large, small)
    (tmp_path / "meshes" / f"{large}:0").unlink()
    assert glance_at(open_stores(stores)).segments == (small,)
    (tmp_path / "meshes" / f"{large}:0.gz").write_bytes(b"")  # as cloud-volume writes it
    assert glance_at(open_stores(stores)).segments == (large, small)


def test_glance_names_so_many_objects_and_no_more(tmp_path: Path) -> None:
    ids = np.arange(40, dtype=np.uint32).reshape(1, 1, 40)
    write_volume(tmp_path / "ids.zarr", ids, VOXEL)
    assert glance_at(open_stores(Stores(labels=str(tmp_path / "ids.zarr")))).segments == ()
    found = glance_at(open_stores(Stores(segmentation=str(tmp_path / "ids.zarr")))).segments
    assert found == tuple(range(1, SEGMENTS + 1))  # all of one size: by id, and 0 is none


def test_glance_reads_precomputed_volumes(tmp_path: Path) -> None:
    cloudvolume = pytest.importorskip("cloudvolume")
    info = cloudvolume.CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", (8, 8, 16), (5, 6, 7), (300, 40, 20), chunk_size=(64, 64, 64)
    )
    volume = cloudvolume.CloudVolume(f"file://{tmp_path}/ids", info=info, progress=False, non_aligned_writes=True)
    volume.commit_info()
    ids = np.full((300, 40, 20, 1), 9, np.uint64)
    ids[:90], ids[140:150] = 3, 2**53 - 1  # the first lies outside of the middle, but for a little
    volume[:, :, :] = ids
    opened = open_stores(Stores(segmentation=str(tmp_path / "ids")))
    assert opened.grid.shape == (20, 40, 300) and opened.grid.origin == (7, 6, 5)
    assert glance_at(opened).segments == (9, 2**53 - 1, 3)


def test_grey_range_leaves_out_what_is_missing_and_the_extremes() -> None:
    voxels = np.concatenate([np.zeros(5000), np.arange(1, 1001), [10_000.0]])
    low, high = grey_range(voxels) or (0.0, 0.0)
    assert 5 < low < 7 and 994 < high < 998
    assert grey_range(np.zeros(8)) is None and grey_range(np.full(8, 3)) is None
    margin = np.repeat([np.nan, np.inf, -np.inf], 200)
    assert grey_range(np.concatenate([margin, voxels])) == (low, high) and grey_range(margin) is None
