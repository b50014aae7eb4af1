"""The stage: trained, killed and gone on, shared by jobs, run again on what has changed, and given what cannot work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.core.volumes import open_volume, open_volume_to_write, write_volume
from apps.evaluation.synapses import score_synapses
from apps.synapses.model import load_model
from apps.synapses.stage import STAGE, SynapseParameters, SynapseResult, run
from apps.synapses.table import read_synapses
from tests.apps.synapses.samples import VOXEL, save, tissue
from tests.full_disk import little_room, refused_for_want_of_room

NETWORK = {"channels": 6, "poolings": 1}
TRAINING = {"patch": [16, 16, 16], "batch_size": 2, "steps": 50, "learning_rate": 0.02, "warmup_steps": 5}
TABLE = "synapses.parquet"


class StopError(Exception):
    """What ends a run in the middle."""


def train(folder: Path, output: str, **given: Any) -> SynapseParameters:
    training = {**TRAINING, "network": NETWORK, "validation_fraction": 0.3, "seed": 1, **given}
    names = {name: str(folder / f"{name}.zarr") for name in ("image", "clefts", "vesicles")}
    return SynapseParameters.from_json(
        {**names, "output": str(folder / output), "action": "train", "training": training}
    )


def find(folder: Path, output: Path, **given: Any) -> SynapseResult:
    content = {
        "image": str(folder / "image.zarr"),
        "segmentation": str(folder / "labels.zarr"),
        "output": str(output),
        "model": str(folder / "trained" / "model"),
        "tile": [16, 16, 16],
        "overlap": 4,
        "min_voxels": 20,
        "threshold": 0.5,
        "vesicles_nm": 60,
        **given,
    }
    return run(SynapseParameters.from_json(content), silent)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the tissue and the model `trained/model`."""
    made = tmp_path_factory.mktemp("synapses")
    save(made)
    run(train(made, "trained"), silent)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """What one job finds."""
    output = folder / "whole"
    result = find(folder, output)
    assert (result.complete, result.count, result.too_large) == (True, len(tissue().synapses), 0)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    """All that lies in an output folder, but for records of work and locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if "work" not in p.relative_to(folder).parts}


def test_a_model_is_trained_judged_and_kept(folder: Path) -> None:
    info = load_model(folder / "trained" / "model").info
    assert info.outputs == ("cleft", "vesicles")
    assert info.voxel_size_nm == VOXEL
    assert min(score for score in info.validation.values() if score is not None) > 0.7
    before = contents(folder / "trained")
    again = run(train(folder, "trained"), silent)
    assert (again.made, again.complete, again.validation) == (0, True, info.validation)
    with pytest.raises(StateError, match="model of another training"):
        run(train(folder, "trained", seed=2), silent)
    assert contents(folder / "trained") == before


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(folder: Path) -> None:
    parameters = train(folder, "stopped", checkpoint_every=10)

    def stop(done: float, total: float, what: str = "") -> None:
        if what.startswith("training") and done == 25:
            raise StopError

    with pytest.raises(StopError):
        run(parameters, stop)
    steps = []
    run(parameters, lambda done, total, what="": steps.append(done) if what.startswith("training") else None)
    assert (steps[0], steps[-1]) == (21, 50)
    models = [load_model(folder / name / "model").info for name in ("stopped", "trained")]
    assert models[0].checksum == models[1].checksum
    assert not (folder / "stopped" / "checkpoint").exists()


def test_synapses_are_found_with_their_partners(whole: Path) -> None:
    truth = tissue().synapses
    scores = score_synapses(read_synapses(whole / TABLE), truth, 30, VOXEL)
    assert (scores.clefts.f1, scores.partners.f1, scores.direction) == (1, 1, 1)
    table = read_synapses(whole / TABLE)
    labels = tissue().labels
    for points, partners in zip(np.rint(table.points).astype(int), table.partners, strict=True):
        assert [labels[tuple(point)] for point in points] == partners.tolist()
    assert (table.confidence > 0.5).all()
    assert open_volume(str(whole / "clefts.zarr")).dtype == np.uint8


def test_jobs_that_share_it_give_the_same_bytes(folder: Path, whole: Path, tmp_path: Path) -> None:
    phases = [(phase.action, phase.shared) for phase in load_stage("synapses").phases]
    assert phases == [("detect", True), ("join", False), ("assign", True), ("finish", False)]
    output = tmp_path / "shared"
    for action, shared in phases:
        parts = [{"index": index, "of": 3} for index in (2, 0, 1)] if shared else [None]
        for part in parts:
            result = find(folder, output, action=action, part=part)
            assert result.complete == (action == "finish")
    assert contents(output) == contents(whole)


def test_what_is_done_is_not_done_again(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "again"
    shutil.copytree(whole, output)
    before = contents(output)
    assert find(folder, output).made == 0
    assert contents(output) == before
    # Another threshold wants components anew, and no network.
    stamp = (output / "clefts.zarr" / "zarr.json").stat().st_mtime_ns
    chunk = next((output / "clefts.zarr" / "0" / "c").rglob("0"))
    inode = chunk.stat().st_ino
    assert find(folder, output, threshold=0.7).made > 0
    assert ((output / "clefts.zarr" / "zarr.json").stat().st_mtime_ns, chunk.stat().st_ino) == (stamp, inode)
    # Tiles that are lost or damaged are made again, to the same bytes.
    find(folder, output)
    records = sorted((output / "work" / "tiles").rglob("*.npz"))
    records[3].unlink()
    records[5].write_bytes(b"half")
    assert find(folder, output).made == 2
    assert contents(output) == before


def test_an_image_that_changed_is_looked_at_again_where_it_did(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    for name in ("image", "labels", "trained"):
        source = folder / (name if name == "trained" else f"{name}.zarr")
        shutil.copytree(source, tmp_path / source.name)
    volume = open_volume_to_write(tmp_path / "image.zarr")
    box = volume.box.grow((0, 0, -24)).translate((0, 0, 24))
    # The same grey values in another place: statistics stay, the picture does not.
    volume.write(box, volume.read(box)[::-1])
    result = find(tmp_path, output)
    assert 0 < result.made < 16 + 1
    fresh = find(tmp_path, tmp_path / "fresh")
    assert fresh.count == result.count
    assert contents(output) == contents(tmp_path / "fresh")


def test_what_is_missing_is_named(folder: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tile 0 \(0:16,0:16,0:16\) is missing"):
        find(folder, tmp_path / "new", action="join")
    with pytest.raises(StateError, match="run the action detect first"):
        find(folder, tmp_path / "new", action="assign")
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    with pytest.raises(DataError, match=r"tile 0 .* was made with another model or other parameters"):
        find(folder, output, action="join", threshold=0.9)
    # A cleft's voxels are looked up by the threshold that it was joined by.
    for action in ("assign", "finish"):
        with pytest.raises(StateError, match=r"were joined with another threshold than 0\.9; give the same"):
            find(folder, output, action=action, threshold=0.9)
    shutil.rmtree(output / "work" / "partners")
    (output / TABLE).unlink()
    with pytest.raises(DataError, match=r"partners of clefts 1 to 8 are missing"):
        find(folder, output, action="finish")
    assert not (output / TABLE).exists()
    (output / "work" / "components.npz").unlink()
    with pytest.raises(StateError, match="run the action join first"):
        find(folder, output, action="assign")


def test_a_segmentation_of_a_part_of_the_image(folder: Path, whole: Path, tmp_path: Path) -> None:
    labels = tissue().labels[:, :, 28:]
    write_volume(tmp_path / "part.zarr", labels, VOXEL)
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    result = find(folder, output, segmentation=str(tmp_path / "part.zarr"), segmentation_offset=[0, 0, 28])
    table, all_of_it = read_synapses(output / TABLE), read_synapses(whole / TABLE)
    inside = all_of_it.centre[:, 2] > 30
    np.testing.assert_array_equal(table.partners[inside], all_of_it.partners[inside])
    assert not table.partners[~inside].any()
    assert result.without_partner == (~inside).sum() > 0


def test_sizes_that_are_no_clefts(folder: Path, tmp_path: Path) -> None:
    result = find(folder, tmp_path / "out", max_voxels=25)
    assert (result.count, result.too_large, len(read_synapses(tmp_path / "out" / TABLE))) == (0, 8, 0)


def test_a_model_of_clefts_alone(folder: Path, tmp_path: Path) -> None:
    parameters = train(folder, str(tmp_path / "alone"), steps=8)
    run(SynapseParameters.from_json(parameters.to_dict() | {"vesicles": None}), silent)
    model = tmp_path / "alone" / "model"
    assert load_model(model).info.outputs == ("cleft",)
    result = find(folder, tmp_path / "out", model=str(model), min_voxels=1, max_voxels=10**6, threshold=0.01)
    assert result.vesicles is None
    assert (read_synapses(tmp_path / "out" / TABLE).confidence <= 0.5).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"segmentation": None}, "segmentation: is missing"),
        ({"clefts": "c.zarr"}, "only the action train takes them"),
        ({"action": "train"}, "clefts: the action train needs"),
        ({"action": "train", "clefts": "c.zarr", "model": "m"}, "the action train makes one"),
        ({"part": {"index": 0, "of": 2}}, "part: only detect and assign"),
        ({"tile": [16, 16, 20]}, "expected multiples of 16"),
        ({"min_voxels": 9, "max_voxels": 8}, "is more than max_voxels"),
    ],
)
def test_parameters_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SynapseParameters.from_json(json.loads(json.dumps({**STAGE.example, **given})))


def test_volumes_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    made = tissue()
    write_volume(tmp_path / "thick.zarr", made.image, (40, 10, 10))
    with pytest.raises(DataError, match=r"voxels of \(40.0, 10.0, 10.0\) nm, the model was trained on"):
        find(folder, tmp_path / "out", image=str(tmp_path / "thick.zarr"))
    write_volume(tmp_path / "floats.zarr", made.image.astype(np.float32), VOXEL)
    with pytest.raises(DataError, match="expected a segmentation of integers"):
        find(folder, tmp_path / "out", segmentation=str(tmp_path / "floats.zarr"))
    with pytest.raises(DataError, match="nothing of the image"):
        find(folder, tmp_path / "out", segmentation_offset=[500, 0, 0])
    with pytest.raises(DataError, match="is no model of synapses"):
        find(folder, tmp_path / "out", model=str(tmp_path))
    write_volume(tmp_path / "small.zarr", made.clefts[:16], VOXEL)
    parameters = train(folder, str(tmp_path / "none")).to_dict()
    with pytest.raises(DataError, match=r"small\.zarr: has shape"):
        run(SynapseParameters.from_json(parameters | {"clefts": str(tmp_path / "small.zarr")}), silent)
    write_volume(tmp_path / "empty.zarr", made.clefts * 0, VOXEL)
    with pytest.raises(DataError, match="has no cleft in the boxes"):
        run(SynapseParameters.from_json(parameters | {"clefts": str(tmp_path / "empty.zarr")}), silent)
    assert not (tmp_path / "out" / "clefts.zarr").exists()


def test_an_image_that_does_not_say_its_voxel_size(folder: Path, whole: Path, tmp_path: Path) -> None:
    """How far partners are looked for is in nm: the segmentation on the same grid says what one voxel is."""
    made = tissue()
    with h5py.File(tmp_path / "em.h5", "w") as file:
        file["raw"], file["labels"] = made.image, made.labels
    image = f"{tmp_path / 'em.h5'}:raw"
    assert find(folder, tmp_path / "out", image=image).complete
    assert (tmp_path / "out" / TABLE).read_bytes() == (whole / TABLE).read_bytes()
    with pytest.raises(DataError, match="does not say how large a voxel is, and neither does"):
        find(folder, tmp_path / "none", image=image, segmentation=f"{tmp_path / 'em.h5'}:labels")
    assert not (tmp_path / "none").exists()
    assert find(folder, tmp_path / "none", image=image, action="detect").made == 16


def test_another_image_in_the_same_folder_is_refused(folder: Path, whole: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "image.zarr", tissue().image[:16], VOXEL)
    with pytest.raises(StateError, match="give another output folder"):
        find(folder, whole, image=str(tmp_path / "image.zarr"), action="detect")


def test_a_full_disk_is_said_and_with_room_the_bytes_are_the_same(folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with refused_for_want_of_room(r"clefts\.zarr: cannot be written \(File too large\)"), little_room(300):
        find(folder, output)
    with refused_for_want_of_room(r"000000000\.npz: cannot be written \(File too large\)"), little_room(1500):
        find(folder, output)
    with refused_for_want_of_room(r"synapses\.parquet: cannot be written \(File too large\)"), little_room(3000):
        find(folder, output)
    tiles = {path: path.stat().st_mtime_ns for path in (output / "work" / "tiles").rglob("*.npz")}
    assert tiles and not (output / TABLE).exists()
    assert find(folder, output).complete
    assert {path: path.stat().st_mtime_ns for path in tiles} == tiles, "what is finished is not made again"
    assert contents(output) == contents(whole)
