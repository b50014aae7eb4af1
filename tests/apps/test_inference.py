"""The inference stage on a network whose weights are set by hand."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parts import Part
from apps.core.progress import silent
from apps.core.stage import stage_main
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.volumes import VoxelSize, open_volume, write_volume
from apps.ffn.canvas import HostCanvas, Look
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.flood_log import FloodLog
from apps.ffn.hand_set import bright_is_object
from apps.ffn.masks import MaskParameters
from apps.ffn.model import ModelParameters, Weights
from apps.ffn.settings import InferenceSettings
from apps.inference import segment
from apps.inference.outputs import SubvolumeResult, log_path, summary_path
from apps.inference.stage import STAGE, InferenceParameters, InferenceResult, SubvolumeTarget
from apps.inference.stage import run as run_stage
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, needs_fib25, tiny_data

MODEL = ModelParameters(depth=1, features=2, fov=(9, 9, 9), deltas=(2, 2, 2))
BOX = Box.of((0, 0, 0), (24, 32, 32))


def target(folder: Path, box: Box, name: str = "box.zarr") -> SubvolumeTarget:
    return SubvolumeTarget(box=box, output=str(folder / "result" / name))


def run(chosen: InferenceParameters) -> SubvolumeResult:
    """The stage, on a single subvolume."""
    (result,) = run_stage(chosen, silent).subvolumes
    return result


def parameters(
    folder: Path, weights: Weights | None = None, trained_nm: VoxelSize | None = None, **fields: Any
) -> InferenceParameters:
    info = CheckpointInfo(model=MODEL, image_mean=MEAN, image_std=STD, step=1, provenance={}, voxel_size_nm=trained_nm)
    save_checkpoint(folder / "checkpoint", info, weights or bright_is_object(MODEL), {})
    values: dict[str, Any] = {
        "image": tiny_data(folder).image,
        "model": str(folder / "checkpoint"),
        "subvolumes": (target(folder, fields.pop("box", BOX)),),
        "settings": InferenceSettings(min_size=100, segment=0.6),
    }
    return InferenceParameters(**{**values, **fields})


def test_tubes_are_segmented(tmp_path: Path) -> None:
    result = run(parameters(tmp_path))
    found = open_volume(result.segmentation)
    assert (found.shape, found.dtype, found.voxel_size_nm) == ((24, 32, 32), np.uint32, (10.0, 10.0, 10.0))
    labels, truth = found.read(), open_volume(str(tmp_path / "labels.zarr")).read()
    assert result.objects == 4
    # A network that looks at single voxels takes some of the neighbours too; most of a tube is one object all the same.
    inside = [labels[truth == number] for number in range(1, 5)]
    mostly = [int(np.bincount(tube).argmax()) for tube in inside]
    assert sorted(mostly) == [1, 2, 3, 4]
    assert all(np.mean(tube == number) > 0.6 for tube, number in zip(inside, mostly, strict=True))
    assert not labels[truth == 0].any()
    table = pd.read_parquet(result.table)
    assert list(table.columns) == [
        *("id", "z", "y", "x", "low_z", "low_y", "low_x", "high_z", "high_y", "high_x", "voxels", "steps")
    ]
    assert list(table["id"]) == [1, 2, 3, 4]
    for number, z, y, x, voxels in table[["id", "z", "y", "x", "voxels"]].to_numpy().tolist():
        assert labels[z, y, x] == number
        assert np.count_nonzero(labels == number) == voxels
    assert result.voxels == np.count_nonzero(labels)
    assert result.steps >= table["steps"].sum()
    assert not result.truncated
    assert min(result.model_seconds, result.other_seconds, result.seed_seconds) > 0


def test_a_box_inside_the_volume_and_a_second_run_give_the_same_bytes(tmp_path: Path) -> None:
    box = Box.of((2, 0, 1), (20, 32, 16))
    first = run(parameters(tmp_path, box=box))
    table, labels = pd.read_parquet(first.table), open_volume(first.segmentation).read()
    assert labels.shape == box.shape
    for number, z, y, x in table[["id", "z", "y", "x"]].to_numpy().tolist():
        assert labels[z - 2, y, x - 1] == number
    again = run(parameters(tmp_path, box=box))
    np.testing.assert_array_equal(open_volume(again.segmentation).read(), labels)
    pd.testing.assert_frame_equal(pd.read_parquet(again.table), table)


def test_an_endless_flood_is_cut_and_said(tmp_path: Path) -> None:
    settings = InferenceSettings(min_size=100, max_steps_per_cell=0.001)
    result = run(parameters(tmp_path, settings=settings))
    assert result.truncated
    assert result.steps == 4  # 0.001 steps for each of 3,072 cells of 2 x 2 x 2 voxels, rounded up


def test_a_network_that_finds_nothing_gives_an_empty_volume(tmp_path: Path) -> None:
    silent_weights = {name: np.zeros_like(value) for name, value in bright_is_object(MODEL).items()}
    silent_weights["conv_lom/biases"][0] = -9.0
    result = run(parameters(tmp_path, silent_weights))
    assert (result.objects, result.voxels) == (0, 0)
    assert result.rejected == result.steps == result.seeds
    assert not open_volume(result.segmentation).read().any()
    assert len(pd.read_parquet(result.table)) == 0


def test_field_of_view_can_be_given(tmp_path: Path) -> None:
    small = run(parameters(tmp_path, fov=(5, 5, 5), deltas=(1, 1, 1)))
    assert small.objects == 4


def test_bad_input_is_named_before_any_work(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"box": Box.of((0, 0, 0), (25, 32, 32))}, "leaves the volume"),
        ({"box": Box.of((0, 0, 0), (8, 32, 32))}, "smaller than the field of view"),
        ({"image": str(tmp_path / "labels.zarr")}, "expected uint8"),
        ({"image": str(tmp_path / "none.zarr")}, "none.zarr"),
        ({"model": str(tmp_path / "none")}, "no such checkpoint"),
    ]
    for fields, word in cases:
        with pytest.raises(DataError, match=word):
            run(parameters(tmp_path, **fields))
    assert not (tmp_path / "result").exists()
    with pytest.raises(ParameterError, match=r"ends in .zarr"):
        SubvolumeTarget(box=BOX, output="labels.h5")
    with pytest.raises(ParameterError, match="odd"):
        run(parameters(tmp_path, fov=(8, 9, 9)))


@needs_fib25
def test_a_google_checkpoint_needs_the_normalisation(tmp_path: Path) -> None:
    write_volume(tmp_path / "grey.zarr", np.full((34, 34, 34), 128, np.uint8), (10.0, 10.0, 10.0))
    fields: dict[str, Any] = {
        "image": str(tmp_path / "grey.zarr"),
        "box": Box.of((0, 0, 0), (34, 34, 34)),
        "model": GOOGLE_CHECKPOINT,
    }
    with pytest.raises(ParameterError, match="image_mean"):
        run(parameters(tmp_path, **fields))
    result = run(parameters(tmp_path, **fields, image_mean=128.0, image_std=33.0))
    assert (result.objects, result.seeds) == (0, 0)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but the summaries, which hold seconds."""
    files = [path for path in folder.rglob("*") if path.is_file() and (path.suffix != ".json" or ".zarr" in str(path))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_killed_in_the_midst_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL after the first object is logged; the next run takes that over from the log and does the rest."""
    chosen = parameters(tmp_path, probability=True, settings=InferenceSettings(min_size=100, max_steps_per_cell=None))
    chosen.save(tmp_path / "parameters.json")
    assert stage_main(STAGE, [str(tmp_path / "parameters.json")]) == 0
    whole = contents(tmp_path / "result")
    assert set(whole) >= {"box.parquet", "box.zarr/zarr.json", "box-probability.zarr/zarr.json"}
    shutil.rmtree(tmp_path / "result")

    log = tmp_path / "result" / ".box.flooding"
    slow = (
        "import sys, time; from apps.ffn.flood_log import FloodLog; from apps.core.stage import stage_main;"
        "from apps.inference.stage import STAGE; append = FloodLog.append;"
        "FloodLog.append = lambda self, outcome: (append(self, outcome), time.sleep(1));"
        "sys.exit(stage_main(STAGE, sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, str(tmp_path / "parameters.json")])
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            _, _, records = (log.read_bytes() if log.is_file() else b"").partition(b"\n")
            if records:
                break
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "result" / "box.zarr").exists()
    assert records

    looked = count_looks(lambda: stage_main(STAGE, [str(tmp_path / "parameters.json")]))
    assert contents(tmp_path / "result") == whole
    result = json.loads((tmp_path / "result.json").read_text())["result"]
    assert 0 < looked < result["steps"]  # the first object was not flooded again, and is counted all the same
    assert not log.exists()


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """Two subvolumes in one job: the finished one is taken as it is; with other settings all is made anew."""
    boxes = [Box.of((0, 0, 0), (24, 32, 16)), Box.of((0, 0, 16), (24, 32, 16))]
    targets = tuple(target(tmp_path, box, f"{number}.zarr") for number, box in enumerate(boxes))
    chosen = parameters(tmp_path, subvolumes=targets)
    first = run_stage(chosen, silent)
    assert [part.objects for part in first.subvolumes] == [2, 2]
    assert first.objects == 4
    assert first.steps == sum(part.steps for part in first.subvolumes)
    before = contents(tmp_path / "result")

    summary_path(tmp_path / "result" / "1.zarr").unlink()
    looked = count_looks(lambda: run_stage(chosen, silent))
    assert 0 < looked <= first.subvolumes[1].steps
    assert contents(tmp_path / "result") == before
    assert count_looks(lambda: run_stage(chosen, silent)) == 0

    other = msgspec.structs.replace(chosen, settings=InferenceSettings(min_size=10**6))
    assert run_stage(other, silent).objects == 0
    assert run_stage(chosen, silent).objects == 4
    assert contents(tmp_path / "result") == before


GRID = SubvolumeGrid(box=Box.of((0, 0, 0), (24, 32, 32)), shape=(24, 32, 16), overlap=(0, 0, 8))


def grid_parameters(folder: Path, **fields: Any) -> InferenceParameters:
    return parameters(folder, **{"subvolumes": (), "grid": GRID, "output": str(folder / "pieces"), **fields})


def test_jobs_share_a_grid_and_its_pieces_are_those_of_a_list(tmp_path: Path) -> None:
    """One of two by a part; a job without a part does the other; then there is nothing left to do by number."""
    first = run_stage(grid_parameters(tmp_path, part=Part(index=0, of=2)), silent)
    assert (first.count, first.complete, first.subvolumes) == (1, False, ())
    assert first.pieces == str(tmp_path / "pieces")
    assert [piece_path(tmp_path / "pieces", number).is_dir() for number in range(2)] == [True, False]
    empty = run_stage(grid_parameters(tmp_path, part=Part(index=0, of=3)), silent)  # more jobs than subvolumes
    assert (empty.count, empty.masked_read.share, empty.voxels_per_second) == (0, 0.0, 0.0)
    assert piece_path("pieces", 1_234_567) == Path("pieces/001/234/001234567.zarr")

    told: list[tuple[float, float]] = []
    results: list[InferenceResult] = []
    report = lambda done, total, what="": told.append((done, total))  # noqa: E731
    looked = count_looks(lambda: results.append(run_stage(grid_parameters(tmp_path), report)))
    (whole,) = results
    assert (whole.count, whole.complete, whole.without_look) == (2, True, 0)
    assert 0 < looked < whole.steps
    assert told[-1] == (2, 2)
    assert all(done <= total == 2 for done, total in told)
    assert whole.masked_write.voxels == GRID.box.size
    assert count_looks(lambda: run_stage(grid_parameters(tmp_path, numbers=(1,)), silent)) == 0

    targets = tuple(target(tmp_path, subvolume.read_box, f"{number}.zarr") for number, subvolume in enumerate(GRID))
    listed = run_stage(parameters(tmp_path, subvolumes=targets), silent)
    for number, part in enumerate(listed.subvolumes):
        piece = open_volume(str(piece_path(tmp_path / "pieces", number)))
        np.testing.assert_array_equal(piece.read(), open_volume(part.segmentation).read())
    assert (listed.objects, listed.steps) == (whole.objects, whole.steps)
    assert (listed.complete, listed.pieces, listed.count) == (True, None, 2)


def test_a_grid_that_cannot_be_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="a list with boxes or a grid"):
        parameters(tmp_path, subvolumes=())
    with pytest.raises(ParameterError, match="a list with boxes or a grid"):
        parameters(tmp_path, grid=GRID, output="pieces")
    with pytest.raises(ParameterError, match="belong to a grid"):
        parameters(tmp_path, numbers=(0,))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"output": None}, "output: is missing"),
        ({"numbers": (0,), "part": Part(index=0, of=1)}, "one of them at most"),
        ({"numbers": (1, 2)}, "2 is no subvolume"),
        ({"numbers": (1, 1)}, "given twice"),
    ]
    for fields, words in cases:
        with pytest.raises(ParameterError, match=words):
            grid_parameters(tmp_path, **fields)
    large = SubvolumeGrid(box=Box.of((0, 0, 0), (24, 32, 33)), shape=(24, 16, 16))
    thin = SubvolumeGrid(box=Box.of((0, 0, 0), (24, 32, 8)), shape=(24, 16, 8))
    for grid, words in ((large, "leaves the volume"), (thin, "smaller than the field of view")):
        with pytest.raises(DataError, match=words):
            run_stage(grid_parameters(tmp_path, grid=grid), silent)
    narrow = msgspec.structs.replace(GRID, overlap=(0, 0, 7))
    with pytest.raises(ParameterError, match=r"overlap \(0, 0, 7\): is 7 along x; .* \(9, 9, 9\) \(zyx\) needs 8"):
        run_stage(grid_parameters(tmp_path, grid=narrow), silent)
    with pytest.raises(ParameterError, match=r"\(11, 11, 11\) \(zyx\) needs 10"):
        run_stage(grid_parameters(tmp_path, fov=(11, 11, 11)), silent)
    with pytest.raises(DataError, match="holds an input"):
        run_stage(grid_parameters(tmp_path, output=str(tmp_path)), silent)
    assert not (tmp_path / "pieces").exists()
    piece_path(tmp_path / "pieces", 0).parent.mkdir(parents=True)
    piece_path(tmp_path / "pieces", 0).write_text("not a volume")
    with pytest.raises(DataError, match="is a file"):
        run_stage(grid_parameters(tmp_path), silent)


def test_an_image_of_other_voxels_than_the_model_was_trained_at_is_refused(tmp_path: Path) -> None:
    """And taken where that is wanted, with the segmentation that is there of a network that did not say."""
    with pytest.raises(DataError, match=r"10 x 10 x 10 nm, and model .*checkpoint was trained at 40 x 8 x 8 nm"):
        run(parameters(tmp_path, trained_nm=(40.0, 8.0, 8.0)))
    assert not (tmp_path / "result").exists()
    first = run(parameters(tmp_path, trained_nm=(10.0, 10.0, 10.05)))
    again = parameters(tmp_path, trained_nm=(40.0, 8.0, 8.0), any_voxel_size=True)
    looked = count_looks(lambda: run(again))
    assert (looked, first.objects) == (0, 4)


@pytest.mark.usefixtures("no_network")
def test_the_image_of_a_masked_subvolume_is_not_read(tmp_path: Path) -> None:
    """Its chunks may be damaged: nobody looks."""
    mask = mask_of(tmp_path, "mask.zarr", (slice(None),))
    chosen = grid_parameters(tmp_path, masks=(mask,))
    for chunk in (tmp_path / "image.zarr" / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    result = run_stage(chosen, silent)
    assert (result.count, result.without_look, result.steps, result.objects) == (2, 2, 0, 0)
    assert not open_volume(str(piece_path(tmp_path / "pieces", 1))).read().any()


def count_looks(action: Callable[[], object]) -> int:
    looks: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        launch = HostCanvas.launch

        def counting(canvas: HostCanvas, asked: Sequence[Look]) -> None:
            looks.append(len(asked))
            launch(canvas, asked)

        patch.setattr(HostCanvas, "launch", counting)
        action()
    return sum(looks)


def test_together_or_alone_on_the_device_or_the_host(tmp_path: Path) -> None:
    """The same labels from one job of two subvolumes on the device as from two jobs on the host."""
    boxes = [Box.of((0, 0, 0), (24, 32, 20)), Box.of((2, 0, 12), (20, 32, 20))]
    settings = InferenceSettings(min_size=100, mode="fast", precision="float32", fovs_per_object=2)
    targets = tuple(target(tmp_path, box, f"{number}.zarr") for number, box in enumerate(boxes))
    together = run_stage(parameters(tmp_path, subvolumes=targets, settings=settings, canvas="device", batch=4), silent)
    for number, box in enumerate(boxes):
        alone = run(parameters(tmp_path, settings=settings, canvas="host", box=box))
        np.testing.assert_array_equal(
            open_volume(together.subvolumes[number].segmentation).read(), open_volume(alone.segmentation).read()
        )


def test_masks_are_honoured_and_checked(tmp_path: Path) -> None:
    vessel = np.zeros((24, 32, 32), np.uint8)
    vessel[:, 16:, :16] = 7
    write_volume(tmp_path / "vessel.zarr", vessel, (10.0, 10.0, 10.0))
    mask = MaskParameters(volume=str(tmp_path / "vessel.zarr"))
    result = run(parameters(tmp_path, masks=(mask,)))
    assert result.objects == 3
    assert not open_volume(result.segmentation).read()[vessel > 0].any()
    write_volume(tmp_path / "small.zarr", vessel[1:], (10.0, 10.0, 10.0))
    with pytest.raises(DataError, match=r"small\.zarr"):
        run(parameters(tmp_path, masks=(MaskParameters(volume=str(tmp_path / "small.zarr")),)))


def test_the_probability_of_objects_is_kept_where_asked_for(tmp_path: Path) -> None:
    result = run(parameters(tmp_path, probability=True))
    assert result.probability is not None
    labels, probability = open_volume(result.segmentation).read(), open_volume(result.probability).read()
    assert probability.dtype == np.uint8
    assert (probability[labels > 0] >= 0.6 * 255 - 1).all()
    assert not probability[labels == 0].any()
    table = pd.read_parquet(result.table)
    for row in table.itertuples():
        assert row.mean_probability == pytest.approx(probability[labels == row.id].mean() / 255)
    assert run(parameters(tmp_path)).probability is None


def test_two_subvolumes_may_not_share_an_output(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="the same file"):
        parameters(tmp_path, subvolumes=(target(tmp_path, BOX), target(tmp_path, BOX)))
    two = target(tmp_path, BOX, "a.zarr"), target(tmp_path, BOX, "a-probability.zarr")
    parameters(tmp_path, subvolumes=two)
    with pytest.raises(ParameterError, match="the same file"):
        parameters(tmp_path, subvolumes=two, probability=True)


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    mask = MaskParameters(volume=str(tmp_path / "labels.zarr"))
    for name in ("image.zarr", "labels.zarr", "../" + tmp_path.name + "/image.zarr"):
        targets = (SubvolumeTarget(box=BOX, output=str(tmp_path / name)),)
        with pytest.raises(DataError, match="is an input of the segmentation"):
            run(parameters(tmp_path, subvolumes=targets, masks=(mask,)))
    assert open_volume(str(tmp_path / "image.zarr")).dtype == np.uint8
    (tmp_path / "notes.zarr").write_text("not a volume")
    with pytest.raises(DataError, match="is a file"):
        run(parameters(tmp_path, subvolumes=(SubvolumeTarget(box=BOX, output=str(tmp_path / "notes.zarr")),)))
    assert (tmp_path / "notes.zarr").read_text() == "not a volume"


def test_a_log_that_a_kill_left_behind_goes(tmp_path: Path) -> None:
    chosen = parameters(tmp_path)
    run(chosen)
    before = contents(tmp_path / "result")
    log_path(tmp_path / "result" / "box.zarr").write_bytes(b"left by a kill after the summary")
    assert count_looks(lambda: run(chosen)) == 0
    assert contents(tmp_path / "result") == before
    assert not log_path(tmp_path / "result" / "box.zarr").exists()


def mask_of(folder: Path, name: str, *parts: tuple[slice, ...]) -> MaskParameters:
    """A mask on the grid of the tiny data, which excludes the parts."""
    excluded = np.zeros((24, 32, 32), np.uint8)
    for part in parts:
        excluded[part] = 1
    write_volume(folder / name, excluded, (10.0, 10.0, 10.0))
    return MaskParameters(volume=str(folder / name))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a network is started."""

    def start(*arguments: object) -> None:
        raise AssertionError("a network was started")

    monkeypatch.setattr(segment, "inference_network", start)


@pytest.mark.usefixtures("no_network")
def test_a_mask_of_everything_leaves_an_empty_segmentation_without_a_network(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, "mask.zarr", (slice(None),))
    result = run(parameters(tmp_path, masks=(mask,), probability=True))
    assert (result.objects, result.seeds, result.steps) == (0, 0, 0)
    assert (result.masked_read.excluded, result.masked_read.share) == (24 * 32 * 32, 1.0)
    assert len(pd.read_parquet(result.table)) == 0
    for name in (result.segmentation, result.probability):
        assert name is not None
        found = open_volume(name)
        assert found.shape == (24, 32, 32)
        assert not found.read().any()


@pytest.mark.usefixtures("no_network")
def test_an_empty_piece_is_the_work_of_one_process_as_any_other(tmp_path: Path) -> None:
    chosen = parameters(tmp_path, masks=(mask_of(tmp_path, "mask.zarr", (slice(None),)),))
    output = Path(chosen.subvolumes[0].output)
    output.parent.mkdir()
    other = FloodLog(log_path(output), "of another process")
    with pytest.raises(StateError, match="another process works on this output"):
        run(chosen)
    assert not output.exists()
    other.close()
    assert run(chosen).objects == 0
    assert not log_path(output).exists()


@pytest.mark.usefixtures("no_network")
def test_where_no_field_of_view_fits_around_a_free_voxel_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    """A field of view of 9 has its centre at least 4 voxels off the faces."""
    mask = mask_of(tmp_path, "mask.zarr", (slice(4, -4), slice(4, -4), slice(4, -4)))
    excluded = 16 * 24 * 24
    for policy in ("peaks", "peaks2d", "grid", "maximum"):
        result = run(parameters(tmp_path, masks=(mask,), settings=InferenceSettings(seed_policy=policy)))
        assert (result.seeds, result.masked_read.excluded) == (0, excluded)
    (tmp_path / "mask.zarr").rename(tmp_path / "other.zarr")
    mask_of(tmp_path, "mask.zarr", (slice(4, -4), slice(4, -4), slice(4, -5)))
    with pytest.raises(AssertionError, match="a network was started"):
        run(parameters(tmp_path, masks=(mask,), settings=InferenceSettings(seed_policy="grid", grid_step=1)))


@pytest.mark.usefixtures("no_network")
def test_a_grey_volume_without_seeds_needs_no_network(tmp_path: Path) -> None:
    write_volume(tmp_path / "grey.zarr", np.full((24, 32, 32), 128, np.uint8), (10.0, 10.0, 10.0))
    result = run_stage(parameters(tmp_path, image=str(tmp_path / "grey.zarr")), silent)
    assert (result.objects, result.without_look, result.masked_read.excluded) == (0, 1, 0)


def test_what_masks_keep_out_is_counted_by_subvolume_and_in_sum(tmp_path: Path) -> None:
    """Two boxes that overlap by 8 columns, of which the first is excluded by two masks together."""
    boxes = [Box.of((0, 0, 0), (24, 32, 20)), Box.of((0, 0, 12), (24, 32, 20))]
    own = [Box.of((0, 0, 0), (24, 32, 16)), Box.of((0, 0, 16), (24, 32, 16))]
    masks = (
        mask_of(tmp_path, "left.zarr", (slice(None), slice(None), slice(0, 12))),
        mask_of(tmp_path, "middle.zarr", (slice(None), slice(None), slice(10, 20))),
    )
    targets = tuple(
        SubvolumeTarget(box=box, write_box=write_box, output=str(tmp_path / "result" / f"{number}.zarr"))
        for number, (box, write_box) in enumerate(zip(boxes, own, strict=True))
    )
    chosen = parameters(tmp_path, subvolumes=targets, masks=masks)
    result = run_stage(chosen, silent)
    first, second = result.subvolumes
    plane = 24 * 32
    assert (first.objects, first.steps) == (0, 0)
    assert (first.masked_read.to_dict(), first.masked_write.to_dict()) == (
        {"voxels": 20 * plane, "excluded": 20 * plane, "share": 1.0},
        {"voxels": 16 * plane, "excluded": 16 * plane, "share": 1.0},
    )
    assert second.objects == 2
    assert (second.masked_read.to_dict(), second.masked_write.to_dict()) == (
        {"voxels": 20 * plane, "excluded": 8 * plane, "share": 0.4},
        {"voxels": 16 * plane, "excluded": 4 * plane, "share": 0.25},
    )
    assert result.without_look == 1
    assert result.masked_read.to_dict() == {"voxels": 40 * plane, "excluded": 28 * plane, "share": 0.7}
    assert result.masked_write.to_dict() == {"voxels": 32 * plane, "excluded": 20 * plane, "share": 0.625}
    summary = json.loads(summary_path(Path(targets[1].output)).read_text())
    assert summary["result"]["masked_read"] == second.masked_read.to_dict()
    assert run_stage(chosen, silent) == result  # all of it from the summaries


def test_an_excluded_subvolume_beside_others_ends_at_once_and_changes_nothing(tmp_path: Path) -> None:
    """Wherever it stands in the job, on host and device; the others get the labels that they have alone."""
    boxes = [Box.of((0, 0, 0), (24, 16, 32)), Box.of((0, 16, 0), (24, 16, 32))]
    mask = mask_of(tmp_path, "mask.zarr", (slice(None), slice(16, 32)))
    alone = run_stage(parameters(tmp_path, masks=(mask,), box=boxes[0]), silent)
    wanted = open_volume(alone.subvolumes[0].segmentation).read()
    assert wanted.any()
    for number, (order, canvas) in enumerate([([0, 1, 1], "host"), ([1, 0, 1], "device"), ([1, 1, 0], "host")]):
        targets = tuple(target(tmp_path, boxes[box], f"{number}-{place}.zarr") for place, box in enumerate(order))
        told: list[tuple[Any, ...]] = []
        result = run_stage(
            parameters(tmp_path, masks=(mask,), subvolumes=targets, canvas=canvas),
            lambda done, total, what="", told=told: told.append((done, total)),
        )
        assert told[-1] == (3, 3)
        assert result.without_look == 2
        assert result.steps == alone.steps
        for box, part in zip(order, result.subvolumes, strict=True):
            labels = open_volume(part.segmentation).read()
            np.testing.assert_array_equal(labels, wanted if box == 0 else np.zeros_like(labels))
        assert not list((tmp_path / "result").glob(".*.flooding"))


def test_a_log_that_holds_all_objects_is_finished_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the last object and the volume: the log is all that it takes."""
    chosen = parameters(tmp_path)
    first, before = run(chosen), contents(tmp_path / "result")
    shutil.rmtree(tmp_path / "result")

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("apps.inference.stage.store", stop)
        with pytest.raises(KeyboardInterrupt):
            run(chosen)
    assert log_path(tmp_path / "result" / "box.zarr").exists()
    monkeypatch.setattr(segment, "inference_network", stop)
    again = run(chosen)
    assert (again.objects, again.steps) == (first.objects, first.steps)
    assert contents(tmp_path / "result") == before


def test_the_write_box_lies_in_the_box() -> None:
    with pytest.raises(ParameterError, match="leaves its read_box"):
        SubvolumeTarget(box=BOX, write_box=Box.of((1, 0, 0), (24, 32, 32)), output="labels.zarr")


def test_deltas_of_0_keep_the_field_of_view_in_its_plane(tmp_path: Path) -> None:
    """On host and device; each object stays within half a field of view of its seed's section."""
    found: dict[str, np.ndarray] = {}
    for canvas in ("host", "device"):
        result = run(parameters(tmp_path, deltas=(0, 2, 2), canvas=canvas, batch=2))
        assert result.objects > 4
        table = pd.read_parquet(result.table)
        assert ((table["z"] - table["low_z"] <= 4) & (table["high_z"] - table["z"] <= 4)).all()
        found[canvas] = open_volume(result.segmentation).read()
    np.testing.assert_array_equal(found["host"], found["device"])


def test_a_job_can_have_more_subvolumes_than_a_process_may_open_files(tmp_path: Path) -> None:
    boxes = [Box.of((0, 0, 0), (9, 9, 9))] * 40
    chosen = parameters(tmp_path, subvolumes=tuple(target(tmp_path, box, f"{n}.zarr") for n, box in enumerate(boxes)))
    run_stage(msgspec.structs.replace(chosen, subvolumes=chosen.subvolumes[:1]), silent)  # all is imported and open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, hard))
    try:
        assert len(run_stage(chosen, silent).subvolumes) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
