"""The phantom stage with an acquisition: tiles, table and truth on disk as the contract says; killed runs go on."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import lock
from apps.core.progress import Reporter, silent
from apps.core.volumes import open_volume
from apps.phantom import stage
from apps.phantom.acquisition import AcquisitionDesign, acquire_section
from apps.phantom.design import PhantomDesign
from apps.phantom.stage import PhantomParameters, PhantomResult, run
from apps.phantom.view import main, section_picture

ACQUISITION: dict[str, Any] = {
    "grid": [2, 3],
    "overlap": 0.3,
    "jitter": 3.0,
    "artefacts": [
        {"kind": "missing_section", "section": 3},
        {"kind": "fold", "section": 5, "fold_width": 8.0},
        {"kind": "missing_tile", "section": 7, "tile": 2},
    ],
}


def parameters(folder: Path, **changes: Any) -> PhantomParameters:
    given = {"output": str(folder), "shape": [16, 72, 96], "seed": 4, "acquisition": ACQUISITION, **changes}
    return PhantomParameters.from_json(given)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "phantom.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PhantomResult]:
    folder = tmp_path_factory.mktemp("acquired") / "ph"
    return folder, run(parameters(folder), silent)


def test_the_block_is_the_same_with_and_without_acquisition(made: tuple[Path, PhantomResult], tmp_path: Path) -> None:
    folder, _ = made
    run(parameters(tmp_path / "plain", acquisition=None), silent)
    for name in ("image.zarr", "labels.zarr"):
        assert digest(folder / name) == digest(tmp_path / "plain" / name)


def test_the_table_names_every_tile_with_its_nominal_place(made: tuple[Path, PhantomResult]) -> None:
    folder, result = made
    assert result.tile_table == str(folder / "tiles.csv")
    with Path(result.tile_table).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "section", "x", "y"]
    assert len(rows) == result.tiles == 14 * 6 + 5
    image = open_volume(result.image).read()
    design = AcquisitionDesign.from_json(ACQUISITION)
    for section in (0, 5, 7):
        acquired = acquire_section(image[section], design, 4, section)
        mine = [row for row in rows if int(row["section"]) == section]
        assert len(mine) == len(acquired.tiles)
        for row, tile, (y, x) in zip(mine, acquired.tiles, acquired.nominal, strict=True):
            assert np.array_equal(np.asarray(Image.open(folder / row["path"])), tile)
            assert (float(row["y"]), float(row["x"])) == (y, x)
    assert {int(row["section"]) for row in rows} == set(range(16)) - {3}
    on_disk = {str(path.relative_to(folder)) for path in (folder / "tiles").rglob("*.tif")}
    assert on_disk == {row["path"] for row in rows}


def test_the_truth_is_that_of_the_sections(made: tuple[Path, PhantomResult]) -> None:
    _, result = made
    assert result.truth and result.warps
    truth = json.loads(Path(result.truth).read_text())
    image = open_volume(result.image).read()
    design = AcquisitionDesign.from_json(ACQUISITION)
    with np.load(result.warps) as file:
        warps, spacing = file["warps"], int(file["warp_spacing"])
    assert warps.shape == (16, 2, 4, 5) and warps.dtype == np.float32
    assert spacing == truth["warp_spacing"] == design.warp_spacing
    for section in (0, 5, 7):
        acquired = acquire_section(image[section], design, 4, section)
        assert np.array_equal(warps[section], acquired.warp)
        places = [[tile["y"], tile["x"]] for tile in truth["tiles"] if tile["section"] == section]
        assert places == acquired.true.tolist()
        assert truth["sections"][section]["translation"] == list(acquired.truth.translation)
        assert truth["sections"][section]["rotation_deg"] == acquired.truth.rotation_deg
    assert [s["section"] for s in truth["sections"]] == list(range(16))
    assert truth["sections"][3]["artefacts"][0]["kind"] == "missing_section"
    assert truth["sections"][5]["fold"]["width"] == 8.0 and "fold" not in truth["sections"][0]
    assert truth["tile_shape"] == list(design.tile_shape((72, 96))) and truth["shape"] == [72, 96]


def test_nothing_is_left_but_the_phantom(made: tuple[Path, PhantomResult]) -> None:
    folder, _ = made
    names = ["image.zarr", "labels.zarr", "phantom.json", "tiles", "tiles.csv", "truth.json", "warps.npz"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_complete_phantom_is_not_made_again(
    made: tuple[Path, PhantomResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = made
    monkeypatch.setattr(stage, "_make", None)
    assert run(parameters(folder), silent) == result


class StoppedError(Exception):
    """Stands for a kill."""


def stop_after(calls: int) -> Reporter:
    left = [calls]

    def report(done: float, total: float, what: str = "") -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    return report


def stopped(folder: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the reporter has been called so often, and leave what a kill leaves."""
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(StoppedError):
            run(parameters(folder), stop_after(calls))


@pytest.mark.parametrize("calls", [1, 9, 17])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    made: tuple[Path, PhantomResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    folder = tmp_path / "ph"
    stopped(folder, calls, monkeypatch)
    assert not (folder / "phantom.json").exists() and not (folder / "tiles.csv").exists()
    said: list[tuple[float, str]] = []
    run(parameters(folder), lambda done, total, what="": said.append((done, what)))
    first = min(done for done, what in said if what == "acquiring sections")
    assert first == max(0, calls - 3)  # sections that had been acquired are not acquired again
    assert digest(folder) == digest(made[0])


def test_other_parameters_begin_anew_and_leave_nothing_of_the_old(
    made: tuple[Path, PhantomResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ph"
    stopped(folder, 6, monkeypatch)
    result = run(parameters(folder, seed=5, tile_format="png"), silent)
    assert not list(folder.rglob("*.tif")) and len(list(folder.rglob("*.png"))) == result.tiles
    run(parameters(folder, acquisition=None), silent)
    assert sorted(path.name for path in folder.iterdir()) == ["image.zarr", "labels.zarr"]
    run(parameters(folder), silent)
    assert digest(folder) == digest(made[0])


def test_two_processes_do_not_write_one_phantom(tmp_path: Path) -> None:
    (tmp_path / ".making").mkdir()
    with (tmp_path / ".making" / "lock").open("a") as stream:
        lock(stream, tmp_path)
        with pytest.raises(StateError, match="another process"):
            run(parameters(tmp_path), silent)


def test_rich_tissue_through_the_stage(tmp_path: Path) -> None:
    rich = {"calibre": 14.0, "synapses": 300.0, "resin": 3.0, "noise": 0.0}
    result = run(parameters(tmp_path, shape=[6, 60, 80], section_thickness=4, design=rich, acquisition=None), silent)
    for name in (result.image, result.labels, result.masks, result.clefts, result.vesicles):
        assert name is not None and open_volume(name).shape == (6, 60, 80)
    assert result.masks and open_volume(result.masks).read().max() == 3
    assert result.synapses and len(Path(result.synapses).read_text().splitlines()) == result.synapse_count + 1
    assert result.skeletons and Path(result.skeletons).is_file() and result.tiles == 0
    labels = open_volume(result.labels).read()
    assert result.objects == labels.max() and result.labelled_fraction == pytest.approx((labels > 0).mean())
    assert not (tmp_path / ".making").exists()
    assert section_picture(tmp_path, 2).shape == (60, 3 * 80 + 2 * 4, 3)


def test_a_picture_has_a_panel_for_each_truth(made: tuple[Path, PhantomResult], tmp_path: Path) -> None:
    folder, result = made
    picture = section_picture(folder, 7)
    assert picture.shape == (72, 3 * 96 + 2 * 4, 3)  # image, labels, tiles; a plain phantom has no masks
    image, labels = open_volume(result.image).read()[7], open_volume(result.labels).read()[7]
    assert np.array_equal(picture[:, :96, 0], image)
    assert np.array_equal(picture[:, 100:196].any(axis=2), labels > 0)
    y, x = AcquisitionDesign.from_json(ACQUISITION).nominal((72, 96))[5].astype(int)
    tile = np.asarray(Image.open(folder / "tiles" / "00007" / "r1c2.tif"))
    assert np.array_equal(picture[y : y + 9, 200 + x : 200 + x + 9, 0], tile[:9, :9])
    assert not section_picture(folder, 3)[:, 200:].any()  # a missing section has no tiles
    assert main([str(folder), "--section", "7", "--output", str(tmp_path / "p.png")]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), picture)
    assert main([str(folder), "--section", "16", "--output", str(tmp_path / "q.png")]) == 2


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"acquisition": {"grid": [9, 9]}}, "larger section"),
        ({"acquisition": {**ACQUISITION, "artefacts": [{"kind": "fold", "section": 16}]}}, "16 sections"),
        ({"section_thickness": 0}, "section_thickness"),
        ({"tile_format": "jpg"}, "tile_format"),
        ({"design": {"soma_diameter": [9.0, 3.0]}}, "soma_diameter"),
    ],
)
def test_bad_parameters_are_named(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        parameters(tmp_path, **changes)


def test_more_than_neurites_do_not_grow_in_memory() -> None:
    with pytest.raises(ParameterError, match="on disk"):
        stage.generate((16, 16, 16), 0, PhantomDesign(vessels=1))


def test_no_object_leaves_no_half_made_phantom(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no object"):
        run(parameters(tmp_path, shape=[16, 72, 96], design={"smallest_object": 10**7, "resin": 1.0}), silent)
    assert not list(tmp_path.iterdir())
