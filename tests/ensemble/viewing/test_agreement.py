"""What is said of stores that do not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.precomputed.stage import PrecomputedParameters
from apps.precomputed.stage import run as write_precomputed
from ensemble.viewing import Stores, disagreements, open_stores
from ensemble.viewing.glance import glance_at
from tests.ensemble.viewing.samples import BALLS, SHAPE, VOXEL, place_at, synapse_table, write_stores


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """All kinds of stores, which belong together; the ends of the synapses are in the balls that they name."""
    found = write_stores(tmp_path)
    table = synapse_table(4)
    for end, number in zip(("pre", "post"), sorted(BALLS), strict=True):
        for axis, place in zip("zyx", BALLS[number][0], strict=True):
            table[f"{end}_{axis}"] = float(place)
    table.to_parquet(tmp_path / "synapses.parquet")
    return found


def said(stores: Stores, **changed: object) -> list[str]:
    return disagreements(open_stores(msgspec.structs.replace(stores, **changed)))


def test_nothing_is_said_of_what_belongs_together(stores: Stores) -> None:
    assert said(stores) == []
    assert said(stores, image=None, synapses=None) == []
    place_at(str(stores.image), (160.0, 80.0, 40.0))  # a piece of a larger one, of which these were made all the same
    assert said(stores) == []


def test_another_image_is_told_by_voxel_size_and_by_place(stores: Stores, tmp_path: Path) -> None:
    coarse, small = str(tmp_path / "coarse.zarr"), str(tmp_path / "small.zarr")
    write_volume(coarse, np.ones(SHAPE, np.uint8), (30.0, 16.0, 16.0))
    write_volume(small, np.ones((8, 64, 64), np.uint8), VOXEL)
    by_size, *_ = said(stores, image=coarse)
    assert "segmentation" in by_size and "16 x 8 x 8 nm" in by_size and "30 x 16 x 16" in by_size
    by_place = said(stores, image=small)
    assert ["covers 0:32,0:64,0:64" in remark for remark in by_place] == [True, True]
    (moved,) = said(stores, offset=(0, 0, 7), synapses=None)
    assert "--offset" in moved


def test_synapses_of_another_segmentation_are_told_by_their_ends(stores: Stores, tmp_path: Path) -> None:
    renumbered = str(tmp_path / "renumbered.zarr")
    write_volume(renumbered, np.full(SHAPE, 77, np.uint64), VOXEL)
    (remark,) = said(stores, segmentation=renumbered)
    assert "of 6 ends of synapses" in remark and ", 0 lie in the object that the table names" in remark
    tiny = str(tmp_path / "tiny.zarr")
    write_volume(tiny, np.full((2, 2, 2), 77, np.uint64), VOXEL)
    assert "the synapses lie outside" in said(stores, segmentation=tiny)[0]


def test_meshes_that_say_what_they_are_of_are_believed(stores: Stores, tmp_path: Path) -> None:
    file = tmp_path / "meshes" / "provenance.json"
    file.write_text(json.dumps({"of": {"segmentation": str(tmp_path / "objects.zarr")}}))
    assert said(stores) == []
    file.write_text(json.dumps({"of": {"segmentation": "/other.zarr"}}))
    (remark,) = said(stores)
    assert "meshes" in remark and "were made of /other.zarr" in remark


def precomputed_copy(folder: Path) -> str:
    """The objects as the stage `precomputed` writes them."""
    copy = str(folder / "copy")
    parameters = PrecomputedParameters(volume=str(folder / "objects.zarr"), output=copy, kind="labels")
    write_precomputed(parameters, silent)
    return copy


def test_a_precomputed_copy_has_the_meshes_of_its_volume(stores: Stores, tmp_path: Path) -> None:
    copy = precomputed_copy(tmp_path)
    provenance = tmp_path / "meshes" / "provenance.json"
    provenance.write_text(json.dumps({"of": {"segmentation": str(tmp_path / "objects.zarr")}}))
    assert said(stores, segmentation=copy) == []


def test_a_volume_is_opened_once_for_all_ends(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudvolume

    opened, real = list[str](), cloudvolume.CloudVolume

    def counted(name: str, **more: object) -> object:
        opened.append(name)
        return real(name, **more)

    copy = precomputed_copy(tmp_path)
    monkeypatch.setattr(cloudvolume, "CloudVolume", counted)
    assert said(stores, segmentation=copy) == [] and len(opened) == 1


def test_a_volume_that_cloud_volume_cannot_open_is_damaged(stores: Stores, tmp_path: Path) -> None:
    copy = precomputed_copy(tmp_path)
    info = json.loads((tmp_path / "copy" / "info").read_text())
    del info["scales"][0]["chunk_sizes"], info["scales"][0]["key"]
    (tmp_path / "copy" / "info").write_text(json.dumps(info))
    assert said(stores, segmentation=copy) == []  # which stays with those that show it
    with pytest.raises(DataError, match=r"copy: cannot be read \(.*the store is damaged or gone"):
        glance_at(open_stores(Stores(segmentation=copy)))
