"""The state that the viewer is given: where layers are put, and what is shown first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from apps.core.volumes import write_volume
from ensemble.viewing import Stores, open_stores, viewer_state
from ensemble.viewing.glance import Glance
from tests.ensemble.viewing.samples import VOXEL, place_at, write_stores

ADDRESS = "http://127.0.0.1:9/v/T/data"


def layer(state: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in state["layers"] if found["name"] == name)


def moves(source: dict[str, Any]) -> list[float]:
    return [row[-1] for row in source["transform"]["matrix"]]


def test_layers_name_their_stores_by_format(tmp_path: Path) -> None:
    state = viewer_state(open_stores(write_stores(tmp_path)), Glance((60.0, 200.0), (7, 3)), ADDRESS, "demo")
    assert [found["name"] for found in state["layers"]] == [
        *("image", "segmentation", "meshes", "skeletons"),  # each can be hidden alone
        *("labels", "synapses"),
    ]
    assert layer(state, "image")["source"]["url"] == f"zarr3://{ADDRESS}/image"
    assert layer(state, "image")["shaderControls"] == {"normalized": {"range": [60.0, 200.0]}}
    segmentation = layer(state, "segmentation")
    assert segmentation["source"]["url"] == f"zarr3://{ADDRESS}/segmentation"
    for name in ("meshes", "skeletons"):
        assert layer(state, name)["source"]["url"] == f"precomputed://{ADDRESS}/{name}"
        assert layer(state, name)["linkedSegmentationGroup"] == "segmentation"
    assert segmentation["segments"] == ["7", "3"]
    assert layer(state, "labels")["visible"] is False
    assert layer(state, "synapses")["linkedSegmentationLayer"] == {"pre": "segmentation", "post": "segmentation"}
    assert state["title"] == "demo" and state["showSlices"] is False


def test_the_list_of_objects_stays_with_the_segmentation(tmp_path: Path) -> None:
    stores = write_stores(tmp_path)
    info = {"@type": "neuroglancer_legacy_mesh", "segment_properties": "properties"}
    (tmp_path / "meshes" / "info").write_text(json.dumps(info))
    source = layer(viewer_state(open_stores(stores), Glance(), ADDRESS), "segmentation")["source"]
    assert source["url"] == f"zarr3://{ADDRESS}/segmentation"  # as long as there is no list
    (tmp_path / "meshes" / "properties").mkdir()
    (tmp_path / "meshes" / "properties" / "info").write_text("{}")
    _, listed = layer(viewer_state(open_stores(stores), Glance(), ADDRESS), "segmentation")["source"]
    assert listed == f"precomputed://{ADDRESS}/meshes/properties"


def test_position_is_the_middle_in_voxels_xyz(tmp_path: Path) -> None:
    state = viewer_state(open_stores(write_stores(tmp_path)), Glance(), ADDRESS)
    assert state["position"] == [32.0, 32.0, 16.0]
    assert list(state["dimensions"]) == ["x", "y", "z"] and state["dimensions"]["z"] == [16e-9, "m"]


def test_offset_moves_the_segmentation_and_what_is_of_it(tmp_path: Path) -> None:
    stores = replace(write_stores(tmp_path), offset=(10, 20, 30))
    state = viewer_state(open_stores(stores), Glance(), ADDRESS)
    volume, meshes, skeletons = (layer(state, name)["source"] for name in ("segmentation", "meshes", "skeletons"))
    assert moves(volume) == [10.5, 20.5, 30.5]  # zyx, and half a voxel as OME-Zarr places centres
    assert moves(meshes) == moves(skeletons) == [240.0, 160.0, 160.0]  # xyz, nm
    assert moves(layer(state, "image")["source"]) == moves(layer(state, "labels")["source"]) == [0.5, 0.5, 0.5]
    assert state["position"] == [62.0, 52.0, 26.0]


def test_an_image_that_is_a_piece_of_a_larger_one_begins_at_0(tmp_path: Path) -> None:
    """What was made of it is placed as its voxels are counted; labels that tell their place in the larger one fit."""
    written = write_stores(tmp_path)
    shutil.copytree(tmp_path / "objects.zarr", tmp_path / "labels.zarr")
    place_at(str(written.image), (160.0, 80.0, 40.0))
    place_at(str(tmp_path / "labels.zarr"), (160.0, 96.0, 40.0))
    stores = open_stores(replace(written, labels=str(tmp_path / "labels.zarr"), offset=(4, 0, 0)))
    state = viewer_state(stores, Glance(), ADDRESS)
    assert moves(layer(state, "image")["source"]) == [0.5 - 10, 0.5 - 10, 0.5 - 5]  # takes off what neuroglancer adds
    assert moves(layer(state, "labels")["source"]) == [0.5 - 10, 0.5 + 2 - 12, 0.5 - 5]
    assert moves(layer(state, "segmentation")["source"]) == [4.5, 0.5, 0.5]
    assert moves(layer(state, "meshes")["source"]) == [0.0, 0.0, 64.0]
    assert state["position"] == [32.0, 32.0, 20.0]
    place_at(str(written.segmentation), (160.0, 80.0, 48.0))  # and so do its meshes
    state = viewer_state(open_stores(replace(written, labels=None)), Glance(), ADDRESS)
    assert moves(layer(state, "segmentation")["source"]) == [0.5 - 10, 0.5 - 10, 0.5 + 1 - 6]
    assert moves(layer(state, "meshes")["source"]) == [8.0, 0.0, 0.0]


def test_segmentation_alone_is_enough(tmp_path: Path) -> None:
    write_volume(tmp_path / "ids.zarr", np.ones((8, 8, 8), np.uint32), VOXEL)
    state = viewer_state(open_stores(Stores(segmentation=str(tmp_path / "ids.zarr"))), Glance(), ADDRESS)
    assert [found["name"] for found in state["layers"]] == ["segmentation"]
    assert state["position"] == [4.0, 4.0, 4.0] and state["showSlices"] is True


@pytest.mark.parametrize(("extent", "scale"), [(300, 1.0), (3000, 1024 / 300)])
def test_all_is_in_sight_unless_that_would_load_everything(tmp_path: Path, extent: int, scale: float) -> None:
    write_volume(tmp_path / "row.zarr", np.ones((1, 1, extent), np.uint8), (8.0, 8.0, 8.0))
    state = viewer_state(open_stores(Stores(image=str(tmp_path / "row.zarr"))), Glance(), ADDRESS)
    assert state["crossSectionScale"] == pytest.approx(scale)
