"""Tissue grown block by block: its truth fits together across blocks, and with the image; killed runs go on."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.progress import Reporter, silent
from apps.core.volumes import open_volume
from apps.phantom import growing
from apps.phantom.design import PhantomDesign
from apps.phantom.fields import PlacedNoise
from apps.phantom.growing import Grown, Layout, grow_tissue
from apps.phantom.picture import OUTSIDE, SOMA, VESSEL
from apps.phantom.tissue import fill_cells, plan_tissue

SHAPE = (32, 60, 64)
BLOCKS = Layout(SHAPE, 1, (16, 60, 32))
FINE: dict[str, Any] = {"calibre": 16.0, "membrane_thickness": 3.0, "thin_processes": 0.0, "smallest_object": 100}
RICH = PhantomDesign.from_json(
    {
        **FINE,
        "somata": 12.0,
        "soma_diameter": [24.0, 26.0],
        "vessels": 1,
        "vessel_diameter": [20.0, 22.0],
        "synapses": 400.0,
        "synapse_diameter": [6.0, 8.0],
        "resin": 4.0,
        "noise": 4.0,
        "shading": 5.0,
    }
)
VOXEL = (10.0, 10.0, 10.0)


@dataclass(frozen=True)
class Made:
    folder: Path
    grown: Grown
    image: NDArray[np.uint8]
    labels: NDArray[np.uint32]
    masks: NDArray[np.uint8]
    clefts: NDArray[np.uint32]
    vesicles: NDArray[np.uint32]
    synapses: list[dict[str, float]]


def grow(folder: Path, layout: Layout = BLOCKS, design: PhantomDesign = RICH, report: Reporter = silent) -> Made:
    folder.mkdir(exist_ok=True)
    grown = grow_tissue(folder, layout, 2, design, VOXEL, report)
    volumes = {name.split(".")[0]: open_volume(str(folder / name)).read() for name in growing.VOLUMES}
    with (folder / growing.SYNAPSES).open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return Made(folder, grown, synapses=rows, **volumes)


def digest(folder: Path) -> dict[str, str]:
    """Every file under `folder`, by the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at(row: dict[str, float], prefix: str = "") -> NDArray[np.float64]:
    return np.array([row[f"{prefix}{axis}"] for axis in "zyx"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return grow(tmp_path_factory.mktemp("tissue"))


def test_objects_are_single_components_across_the_blocks(made: Made) -> None:
    labels = made.labels
    assert set(np.unique(labels)) == set(range(made.grown.objects + 1))
    assert cc3d.connected_components(labels, connectivity=6).max() == made.grown.objects
    assert np.bincount(labels.ravel())[1:].min() >= RICH.smallest_object
    assert made.grown.labelled_voxels == np.count_nonzero(labels)
    spans = ndimage.find_objects(labels.astype(np.int32))
    assert sum(box[0].start < 16 < box[0].stop and box[2].start < 32 < box[2].stop for box in spans) >= 2
    for axis in range(3):
        near, far = np.take(labels, range(SHAPE[axis] - 1), axis), np.take(labels, range(1, SHAPE[axis]), axis)
        assert not ((near != far) & (near > 0) & (far > 0)).any()


def test_one_block_and_four_blocks_are_the_same_tissue(tmp_path: Path) -> None:
    design = PhantomDesign.from_json({**FINE, "somata": 12.0, "soma_diameter": [20.0, 22.0], "noise": 0.0})
    four, one = grow(tmp_path / "four", design=design), grow(tmp_path / "one", Layout(SHAPE, 1, SHAPE), design)
    assert four.grown.objects == one.grown.objects
    pairs = np.unique(np.stack([four.labels.ravel(), one.labels.ravel()]), axis=1)
    assert pairs.shape[1] == one.grown.objects + 1  # one to one: numbers may differ, borders do not
    assert np.array_equal(four.masks, one.masks)
    assert np.abs(four.image.astype(int) - one.image).max() <= 1


def test_windows_that_overlap_agree() -> None:
    tissue = plan_tissue(SHAPE, 2, RICH)
    one, other = Box.of((0, 0, 0), (20, 30, 40)), Box.of((10, 20, 8), (20, 30, 40))
    common = one.intersection(other)
    a, b = (fill_cells(tissue, box)[common.slices(box.offset)] for box in (one, other))
    assert np.array_equal(a, b)
    p, q = (PlacedNoise(7, box).smooth("x", 3.0)[common.slices(box.offset)] for box in (one, other))
    assert np.abs(p - q).max() < 1e-5
    assert not np.array_equal(p, PlacedNoise(8, one).smooth("x", 3.0)[common.slices(one.offset)])


def test_cell_bodies_keep_off_vessels_and_each_other() -> None:
    tissue = plan_tissue((64, 128, 128), 1, PhantomDesign(somata=6.0, soma_diameter=(24.0, 30.0), vessels=2))
    assert len(tissue.vessels) == 2 and len(tissue.somata) >= 4
    for number, soma in enumerate(tissue.somata):
        for vessel in tissue.vessels:
            far = np.linalg.norm(vessel.points - soma.centre, axis=1)
            assert (far > vessel.radius + soma.radius).all()
        for other in tissue.somata[:number]:
            assert np.linalg.norm(other.centre - soma.centre) > other.radius + soma.radius
            assert other.neurite != soma.neurite


@pytest.mark.parametrize("length", [1.2, 4.0, 9.0])
def test_placed_noise_has_unit_spread(length: float) -> None:
    field = PlacedNoise(0, Box.of((-30, 5, 1000), (64, 64, 64))).smooth("x", length)
    assert field.dtype == np.float32 and 0.7 < field.std() < 1.2


def test_masks_say_what_is_no_neuropil(made: Made) -> None:
    counts = np.bincount(made.masks.ravel(), minlength=4)
    assert (counts > 500).all()
    assert not made.labels[(made.masks == VESSEL) | (made.masks == OUTSIDE)].any()
    edges = [made.masks[:, 0], made.masks[:, -1], made.masks[:, :, 0], made.masks[:, :, -1]]
    assert all((edge == OUTSIDE).mean() > 0.95 for edge in edges)
    bodies = cc3d.connected_components((made.masks == SOMA).astype(np.uint8), connectivity=6)
    for body in range(1, int(bodies.max()) + 1):
        inside = made.labels[bodies == body]
        if len(inside) > 500:  # a cell body is a part of one object
            assert np.bincount(inside[inside > 0]).max() > 0.9 * (inside > 0).sum()


def test_masked_things_look_different(made: Made) -> None:
    deep = {kind: ndimage.binary_erosion(made.masks == kind, iterations=3) for kind in (0, VESSEL, SOMA, OUTSIDE)}
    assert deep[OUTSIDE].any() and made.image[deep[OUTSIDE]].mean() > 160
    vessel = made.image[ndimage.binary_erosion(made.masks == VESSEL, iterations=8)]
    assert len(vessel) and vessel.mean() > 190  # the lumen


def test_synapses_have_partners_cleft_vesicles_and_direction(made: Made) -> None:
    assert len(made.synapses) == made.grown.synapses >= 3
    assert [row["id"] for row in made.synapses] == list(range(1, len(made.synapses) + 1))
    seen = 0
    for row in made.synapses:
        centre, before, after, direction = at(row), at(row, "pre_"), at(row, "post_"), at(row, "direction_")
        assert made.labels[tuple(np.rint(before).astype(int))] == row["pre"] != row["post"]
        assert made.labels[tuple(np.rint(after).astype(int))] == row["post"]
        assert np.linalg.norm(direction) == pytest.approx(1, abs=0.01)
        assert (after - before) @ direction > 8
        cleft = np.argwhere(made.clefts == row["id"])
        assert len(cleft) > 15 and np.linalg.norm(cleft.mean(axis=0) - centre) < 3
        assert np.linalg.norm(cleft - centre, axis=1).max() < row["diameter"] / 2 + 8
        cloud = made.vesicles == row["id"]
        if cloud.sum() > 100:
            seen += 1
            assert (np.argwhere(cloud).mean(axis=0) - centre) @ direction < -4
            inside = made.labels[cloud]
            assert (inside == row["pre"]).mean() > 0.9
    assert seen >= 2


def test_synapses_keep_apart(made: Made) -> None:
    centres = np.array([at(row) for row in made.synapses])
    apart = np.linalg.norm(centres[:, None] - centres, axis=2) + 100 * np.eye(len(centres))
    assert apart.min() >= 25.9


def test_synapses_are_seen_in_the_image(made: Made, tmp_path: Path) -> None:
    without = grow(tmp_path / "none", design=PhantomDesign.from_json({**RICH.to_dict(), "synapses": 0.0}))
    assert without.grown.synapses == 0 and not without.clefts.any() and not without.vesicles.any()
    assert np.array_equal(without.labels, made.labels)
    darker = without.image.astype(int) - made.image
    around = ndimage.binary_dilation(made.clefts > 0, iterations=4)
    assert np.percentile(darker[around], 90) > 15 and darker[made.vesicles > 0].mean() > 2
    far = ndimage.distance_transform_edt((made.clefts == 0) & (made.vesicles == 0)) > 8
    assert np.abs(darker[far]).max() <= 1


def test_skeletons_run_inside_of_their_objects(made: Made) -> None:
    with np.load(made.folder / growing.SKELETONS) as file:
        nodes, radius, label, edges = (file[name] for name in ("nodes", "radius", "label", "edges"))
    assert len(nodes) == len(radius) == len(label) and label.dtype == np.uint32
    assert np.array_equal(made.labels[tuple(np.rint(nodes).astype(int).T)], label)
    assert np.array_equal(label[edges[:, 0]], label[edges[:, 1]])
    lengths = np.linalg.norm(nodes[edges[:, 0]] - nodes[edges[:, 1]], axis=1)
    assert np.median(lengths) == pytest.approx(2.0, abs=0.1)
    covered = np.isin(made.labels, np.unique(label)) & (made.labels > 0)
    assert covered.sum() > 0.7 * (made.labels > 0).sum()


def test_thick_sections_average_planes_of_tissue(tmp_path: Path) -> None:
    design = PhantomDesign.from_json({**FINE, "noise": 0.0, "shading": 0.0, "texture": 0.0})
    thin = grow(tmp_path / "thin", Layout((36, 48, 48), 1, (36, 48, 48)), design)
    thick = grow(tmp_path / "thick", Layout((12, 48, 48), 3, (6, 48, 48)), design)
    assert thick.image.shape == (12, 48, 48)
    mean = thin.image.reshape(12, 3, 48, 48).mean(axis=1)
    assert np.abs(thick.image - mean).max() <= 2
    pairs = np.unique(np.stack([thick.labels.ravel(), thin.labels[1::3].ravel()]), axis=1)
    assert pairs.shape[1] == thick.grown.objects + 1
    with np.load(tmp_path / "thick" / growing.SKELETONS) as file:
        nodes, label = file["nodes"], file["label"]
    assert nodes[:, 0].min() >= -1 and nodes[:, 0].max() < 12
    z, y, x = np.rint(nodes).astype(int).clip(0, (11, 47, 47)).T
    assert (thick.labels[z, y, x] == label).mean() > 0.8


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("after", [5, 10])
def test_a_stopped_run_goes_on_to_the_same_bytes(made: Made, tmp_path: Path, after: int) -> None:
    calls = 0

    def stop(done: float, total: float, what: str = "") -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise StoppedError

    folder = tmp_path / "again"
    with pytest.raises(StoppedError):
        grow(folder, report=stop)
    said: list[float] = []
    grow(folder, report=lambda done, total, what="": said.append(done))
    assert digest(folder) == digest(made.folder)


def test_what_is_done_is_not_done_again(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("made again")

    for name in ("fill_cells", "analyse", "paint", "plan_tissue"):
        monkeypatch.setattr(growing, name, refuse)
    assert grow_tissue(made.folder, BLOCKS, 2, RICH, VOXEL, silent) == made.grown


def test_nothing_grows_where_objects_are_asked_to_be_huge(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no object"):
        grow(tmp_path / "none", design=PhantomDesign(smallest_object=10**7))
