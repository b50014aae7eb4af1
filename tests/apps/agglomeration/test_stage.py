"""The stage agglomeration: what it merges, that it does so in any number of jobs, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.agglomeration import relabelling, scoring
from apps.agglomeration.collecting import read_record
from apps.agglomeration.inputs import open_inputs
from apps.agglomeration.stage import AgglomerationResult, run
from apps.agglomeration.tables import write_table
from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import move_folder
from apps.core.parts import Part
from apps.core.progress import silent
from apps.core.volumes import Volume, content_hash, open_volume, open_volume_to_write, write_volume
from apps.ffn.canvas import HostCanvas, Thresholds
from apps.ffn.masks import MaskParameters
from apps.ffn.settings import InferenceSettings
from apps.multiscale.stage import MultiscaleParameters
from apps.multiscale.stage import run as add_levels
from tests.apps.agglomeration.samples import DARK, FAR, LEFT, MODEL, RIGHT, SIZE, labels, parameters, write_inputs
from tests.apps.ffn.tiny import FIB25, GOOGLE_CHECKPOINT, needs_fib25


class Looks:
    """Counts what the network is shown."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        self.count += 1
        return np.where(image > 0, np.float32(4), np.float32(-4))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """The network of samples.py in NumPy, so that most tests need no TensorFlow."""
    predict = Looks()
    monkeypatch.setattr(scoring, "inference_network", lambda *_: None)
    monkeypatch.setattr(
        scoring, "make_canvas", lambda _, settings, *__: HostCanvas(MODEL, predict, Thresholds.of(settings))
    )
    yield predict


def do(folder: Path, **fields: Any) -> AgglomerationResult:
    return run(parameters(folder, **fields), silent)


def do_until_moved(folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """As `do`, killed when the finished volume is about to get its name."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(relabelling, "move_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            do(folder, **fields)


def content(folder: Path) -> dict[str, str]:
    """Name -> hash of every file under a folder that is not a leftover of a lock."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_two_parts_of_the_tube_become_one(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    result = do(tmp_path)
    merged = open_volume(result.segmentation)
    expected = np.where(labels() == RIGHT, LEFT, labels())
    np.testing.assert_array_equal(merged.read(), expected)
    assert (merged.dtype, merged.voxel_size_nm) == (np.uint64, SIZE)
    assert result.complete
    assert result.decision is not None
    assert (result.decision.base_objects, result.decision.objects, result.decision.largest) == (4, 3, 2)
    assert (result.decision.points, result.decision.merges, result.decision.refused) == (3, 1, {"stopped": 2})
    assert result.decision.steps == looks.count

    edges = pd.read_parquet(result.edges)
    assert edges[["a", "b"]].to_numpy().tolist() == [[LEFT, RIGHT], [LEFT, DARK], [RIGHT, DARK]]
    first = edges.iloc[0]
    assert (first["refused"], first["object"], first["x"], first["contacts"]) == ("", LEFT, 39, 25)
    assert first["iou"] > 0.8
    assert edges["object"].isna().tolist() == [False, True, True]
    merges = pd.read_parquet(result.merges)
    assert merges[["object", "a", "b"]].to_numpy().tolist() == [[LEFT, LEFT, RIGHT]]
    objects = pd.read_parquet(result.objects)
    assert objects["object"].tolist() == [LEFT, FAR, DARK]
    assert [list(base) for base in objects["base"]] == [[LEFT, RIGHT], [FAR], [DARK]]
    assert objects["voxels"].tolist() == [int((expected == n).sum()) for n in (LEFT, FAR, DARK)]


def test_several_jobs_leave_the_bytes_of_one(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    do(tmp_path)
    expected = content(tmp_path / "out")
    for of in (2, 3, 5):
        output = str(tmp_path / f"out{of}" / "agglomerated.zarr")
        for action in ("score", "relabel"):
            for index in reversed(range(of)):
                result = do(tmp_path, output=output, action=action, part=Part(index=index, of=of))
                assert not result.complete
            if action == "score":
                do(tmp_path, output=output, action="merge")
        assert not Path(output).exists()
        assert do(tmp_path, output=output, action="finish").complete
        found = content(tmp_path / f"out{of}")
        differ = {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}
        assert {name.rpartition("/")[2] for name in differ} <= {"finished.json", "finishing.json"}


def test_what_is_done_is_not_done_again(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    first = do(tmp_path)
    before, seen = content(tmp_path / "out"), looks.count
    again = do(tmp_path)
    assert (again.scored, again.written, looks.count) == (0, 0, seen)
    assert (again.decision, again.complete) == (first.decision, True)
    assert content(tmp_path / "out") == before
    # Another threshold needs no other scores.
    stricter = do(tmp_path, min_iou=0.99)
    assert (stricter.scored, looks.count) == (0, seen)
    assert stricter.decision is not None
    assert stricter.decision.refused == {"iou": 1, "stopped": 2}
    np.testing.assert_array_equal(open_volume(stricter.segmentation).read(), labels())


def test_what_nobody_wrote_to_is_not_read_again(tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    mask = tmp_path / "mask.zarr"
    write_volume(mask, np.zeros(labels().shape, np.uint8), SIZE, (32, 32, 32))
    masked = {"masks": (MaskParameters(volume=str(mask)),)}
    do(tmp_path, **masked)
    read: list[str] = []

    def hashing(volume: Volume, box: Box | None = None) -> str:
        read.append(Path(volume.name).name)
        return content_hash(volume, box)

    monkeypatch.setattr(scoring, "content_hash", hashing)
    do(tmp_path, **masked)
    assert read == []
    image = open_volume_to_write(tmp_path / "image.zarr")
    image.write(image.box, image.read())  # the same voxels, written again
    result = do(tmp_path, **masked)
    assert set(read) == {"labels.zarr", "image.zarr", "mask.zarr"}
    assert result.scored == 0


def test_a_changed_segmentation_is_scored_again_where_it_changed(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    narrow = {"radius": (12, 12, 8)}
    do(tmp_path, **narrow)
    changed = labels()
    changed[0, 0, 95] = 77
    write_volume(tmp_path / "labels.zarr", changed, SIZE, (32, 32, 32))
    with pytest.raises(StateError, match=r"has scores of other voxels: the segmentation, .* was written since"):
        do(tmp_path, action="merge", **narrow)
    result = do(tmp_path, **narrow)
    assert 0 < result.scored < result.blocks
    assert result.decision is not None
    assert result.decision.base_objects == 5
    assert open_volume(result.segmentation).read()[0, 0, 95] == 77


def test_a_killed_job_goes_on(tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    do(tmp_path)
    expected, output = content(tmp_path / "out"), str(tmp_path / "out2" / "agglomerated.zarr")
    written, write = 0, write_table

    def failing(*arguments: Any) -> None:
        nonlocal written
        if written == 3:
            raise KeyboardInterrupt
        written += 1
        write(*arguments)

    monkeypatch.setattr(scoring, "write_table", failing)
    with pytest.raises(KeyboardInterrupt):
        do(tmp_path, output=output)
    assert not Path(output).exists()
    monkeypatch.setattr(scoring, "write_table", write)
    result = do(tmp_path, output=output)
    assert (result.scored, result.complete) == (2, True)
    found = content(tmp_path / "out2")
    assert {name for name in expected if found.get(name) != expected[name]} <= {
        f"agglomerated-agglomeration/{name}" for name in ("finished.json", "finishing.json")
    }


def test_a_kill_just_before_the_end_is_made_good(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    result = do(tmp_path)
    (parameters(tmp_path).work_folder / "finished.json").unlink()
    assert do(tmp_path, action="all").complete
    assert open_volume(result.segmentation).read().any()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_the_names_change_is_made_good(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """An earlier answer is replaced; killed before or after each of the two renamings, the new one is there at last."""
    write_inputs(tmp_path)
    do(tmp_path)
    rename, left = Path.rename, renames

    def dies(new: Path, target: Path) -> Path:
        nonlocal left
        if "agglomerated.zarr" in str(target) and "relabel-" not in str(target):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return rename(new, target)

    def move(new: Path, target: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dies)
            move_folder(new, target)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(relabelling, "move_folder", move)
        with pytest.raises(KeyboardInterrupt):
            do(tmp_path, min_iou=1.0)
    result = do(tmp_path, min_iou=1.0)
    assert (result.complete, result.written) == (True, 0)
    np.testing.assert_array_equal(open_volume(result.segmentation).read(), labels())
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    for action in ("score", "merge", "relabel"):
        do(tmp_path, action=action)
    first, second = sorted(parameters(tmp_path).work_folder.glob("relabel-*/written/**/*.json"))[:2]
    first.write_text("{")
    second.write_text("{}")
    with pytest.raises(StateError, match=r"block 0 .*is not written"):
        do(tmp_path, action="finish")
    result = do(tmp_path)
    assert (result.written, result.complete) == (2, True)


def test_what_a_user_puts_at_an_announced_place_is_left_alone(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the note of what is to come and the moving."""
    write_inputs(tmp_path)
    do_until_moved(tmp_path, monkeypatch)
    output = Path(parameters(tmp_path).output)
    write_volume(output, labels(), SIZE)
    before = content(output)
    with pytest.raises(StateError, match="does not say that this agglomeration made it"):
        do(tmp_path)
    assert content(output) == before
    shutil.rmtree(output)
    assert do(tmp_path).complete


def test_kills_at_both_ends_of_the_moving_leave_the_output_ours(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the first answer is noted; then, with another one, before that is moved."""
    write_inputs(tmp_path)
    do(tmp_path)
    (parameters(tmp_path).work_folder / "finished.json").unlink()
    do_until_moved(tmp_path, monkeypatch, min_iou=1.0)
    result = do(tmp_path, min_iou=1.0)
    np.testing.assert_array_equal(open_volume(result.segmentation).read(), labels())


def test_a_volume_in_the_making_that_was_taken_away_is_written_anew(tmp_path: Path, looks: Looks) -> None:
    """The records of its blocks are there still, and say nothing of the empty one that takes its place."""
    write_inputs(tmp_path)
    for action in ("score", "merge", "relabel"):
        do(tmp_path, action=action)
    (making,) = parameters(tmp_path).work_folder.glob("relabel-*/agglomerated.zarr")
    shutil.rmtree(making)
    with pytest.raises(StateError, match=r"agglomerated\.zarr: is not there; run the action relabel first"):
        do(tmp_path, action="finish")
    assert do(tmp_path, action="relabel", part=Part(index=0, of=3)).written == 1
    with pytest.raises(StateError, match=r"block 1 .*is not written"):
        do(tmp_path, action="finish")
    result = do(tmp_path)
    assert (result.written, result.complete) == (2, True)
    np.testing.assert_array_equal(open_volume(result.segmentation).read(), np.where(labels() == RIGHT, LEFT, labels()))


def test_an_old_answer_is_not_taken_for_a_volume_that_was_taken_away(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before the new one gets its name; then that is removed by hand."""
    write_inputs(tmp_path)
    do(tmp_path)
    do_until_moved(tmp_path, monkeypatch, min_iou=1.0)
    (making,) = parameters(tmp_path).work_folder.glob("relabel-*/agglomerated.zarr")
    shutil.rmtree(making)
    result = do(tmp_path, min_iou=1.0)
    assert (result.written, result.complete) == (3, True)
    np.testing.assert_array_equal(open_volume(result.segmentation).read(), labels())


def test_a_work_folder_on_another_file_system_is_an_error_at_once(tmp_path: Path, looks: Looks) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system, /dev/shm")
    write_inputs(tmp_path)
    with tempfile.TemporaryDirectory(dir=other) as work, pytest.raises(ParameterError, match="another file system"):
        do(tmp_path, work=work)
    assert looks.count == 0


def test_a_cut_undoes_a_merge_and_a_forbidden_pair_prevents_it(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"a,b\n{RIGHT},{LEFT}\n")
    for field in ("cut", "forbidden"):
        result = do(tmp_path, **{field: str(pairs)})
        assert result.decision is not None
        assert result.decision.refused == {field: 1, "stopped": 2}
        np.testing.assert_array_equal(open_volume(result.segmentation).read(), labels())


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("forbidden", (LEFT, 6), "forbidden: the segmentation has no object 6; remove its pair"),
        ("cut", (LEFT, FAR), f"cut: the objects {LEFT} and {FAR} have no decision point"),
    ],
)
def test_a_pair_that_does_nothing_is_an_error_and_what_was_decided_stays(
    tmp_path: Path, looks: Looks, name: str, pair: tuple[int, int], message: str
) -> None:
    write_inputs(tmp_path)
    result = do(tmp_path)
    (tmp_path / "pairs.csv").write_text(f"a,b\n{pair[0]},{pair[1]}\n")
    with pytest.raises(DataError, match=message):
        do(tmp_path, **{name: str(tmp_path / "pairs.csv")})
    assert read_record(Path(result.edges).parent) == result.decision


@pytest.mark.parametrize("name", ["edges.parquet", "merges.parquet", "objects.parquet", "mapping.npz", "merge.json"])
@pytest.mark.parametrize("size", [0, 30])
def test_a_decision_that_is_cut_short_is_made_again(tmp_path: Path, looks: Looks, name: str, size: int) -> None:
    write_inputs(tmp_path)
    result = do(tmp_path)
    work = Path(result.edges).parent
    tables = {file: (work / file).read_bytes() for file in ("edges.parquet", "merges.parquet", "objects.parquet")}
    os.truncate(work / name, size)
    shutil.rmtree(result.segmentation)  # so that the mapping is wanted
    if name == "mapping.npz":
        with pytest.raises(DataError, match=r"mapping\.npz: is missing or damaged .*; run the action merge"):
            do(tmp_path, action="relabel")
    assert do(tmp_path).decision == result.decision
    assert {file: (work / file).read_bytes() for file in tables} == tables


def test_by_whatever_way_one_comes_there_the_output_is_known(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    do(tmp_path / "link")
    for folder in (tmp_path / "real", tmp_path / "link" / ".." / "real"):
        again = do(folder)
        assert (again.scored, again.written, again.complete) == (0, 0, True)


def test_a_segmentation_that_is_made_anew_is_not_written_by_an_old_decision(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    for action in ("score", "merge"):
        do(tmp_path, action=action)
    write_volume(tmp_path / "labels.zarr", labels(), SIZE, (32, 32, 32))
    with pytest.raises(StateError, match=r"labels\.zarr: was made anew since the decision in .*; run the"):
        do(tmp_path, action="relabel")
    shown = looks.count
    assert do(tmp_path).complete and looks.count == shown, "it is the same, so that the decision stands"


def test_coarser_levels_do_not_make_a_segmentation_another(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    for action in ("score", "merge"):
        do(tmp_path, action=action)
    volume = str(tmp_path / "labels.zarr")
    add_levels(MultiscaleParameters(volume=volume, kind="labels", factors=((2, 2, 2),)), silent)
    for action in ("relabel", "finish"):
        result = do(tmp_path, action=action)
    assert result.complete


def test_a_negative_id_is_named(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    negative = np.zeros(labels().shape, np.int16)
    negative[0, 0, 40] = -1  # in the second block, which the first one sees
    write_volume(tmp_path / "labels.zarr", negative, SIZE, (32, 32, 32))
    with pytest.raises(DataError, match=r"labels\.zarr: holds the id -1 in .*; expected ids from 1 on, and 0 for none"):
        do(tmp_path)


def test_a_work_folder_that_cannot_be_written_is_named(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    (parameters(tmp_path).work_folder / ".lock").mkdir(parents=True)
    with pytest.raises(DataError, match=r"agglomerated-agglomeration: cannot be written"):
        do(tmp_path)


def test_masks_keep_the_network_out(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    write_volume(tmp_path / "mask.zarr", (labels() == RIGHT).astype(np.uint8), SIZE, (32, 32, 32))
    result = do(tmp_path, masks=(MaskParameters(volume=str(tmp_path / "mask.zarr")),))
    assert result.decision is not None
    assert result.decision.merges == 0


def test_a_segmentation_of_a_part_of_the_image(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    expected = do(tmp_path).decision
    image = open_volume(str(tmp_path / "image.zarr")).read()
    write_volume(tmp_path / "large.zarr", np.pad(image, ((3, 5), (7, 1), (2, 2))), SIZE)
    result = do(tmp_path, image=str(tmp_path / "large.zarr"), offset=(3, 7, 2), output=str(tmp_path / "o" / "a.zarr"))
    assert result.decision is not None
    assert expected is not None
    assert (result.decision.merges, result.decision.steps) == (expected.merges, expected.steps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": "agglomerated"}, "ends in .zarr"),
        ({"block": (32, 32, 48)}, "multiples of 32"),
        ({"stop_below": 0.9}, "stop_below 0.9: is over min_recovered"),
        ({"part": Part(index=0, of=2)}, "is the work of one job"),
        ({"radius": (0, 3, 3)}, "radius"),
    ],
)
def test_parameters_that_do_not_fit(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_inputs(tmp_path)
    with pytest.raises(ParameterError, match=message):
        do(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmentation": "nothing.zarr"}, "nothing.zarr: no such volume"),
        ({"image": "nothing.zarr"}, "nothing.zarr: no such volume"),
        ({"model": "nothing"}, "nothing: no such checkpoint"),
        ({"radius": (3, 12, 12)}, "field of view .* does not fit"),
        ({"offset": (0, 0, 1)}, "give the offset"),
        ({"forbidden": "nothing.csv"}, "nothing.csv: no such file"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, looks: Looks, fields: dict[str, Any], message: str) -> None:
    write_inputs(tmp_path)
    with pytest.raises(DataError, match=message):
        do(tmp_path, **fields)
    assert not (tmp_path / "out" / "agglomerated.zarr").exists()


def test_another_voxel_size_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    write_volume(tmp_path / "labels.zarr", labels(), (20.0, 10.0, 10.0), (32, 32, 32))
    with pytest.raises(DataError, match="on the image's grid"):
        do(tmp_path)


def test_an_image_of_other_voxels_than_the_models_is_refused(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path, trained_nm=(20.0, 10.0, 10.0))
    with pytest.raises(DataError, match=r"10 x 10 x 10 nm, and model .* was trained at 20 x 10 x 10 nm"):
        do(tmp_path)
    assert looks.count == 0 and not (tmp_path / "out" / "agglomerated.zarr").exists()
    assert do(tmp_path, any_voxel_size=True).complete


def test_a_missing_block_is_named(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    do(tmp_path, action="score", part=Part(index=0, of=3))
    with pytest.raises(StateError, match=r"block 1 .*has no scores"):
        do(tmp_path, action="merge")
    with pytest.raises(StateError, match="run the action merge first"):
        do(tmp_path, action="relabel")
    do(tmp_path, action="score")
    with pytest.raises(StateError, match=r"block 0 .*other parameters"):
        do(tmp_path, action="merge", reach=1.0)
    do(tmp_path, action="merge")
    do(tmp_path, action="relabel", part=Part(index=0, of=3))
    with pytest.raises(StateError, match=r"block 1 .*is not written"):
        do(tmp_path, action="finish")
    assert not Path(parameters(tmp_path).output).exists()


def test_an_output_of_somebody_else_is_left_alone(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    output = tmp_path / "out" / "agglomerated.zarr"
    write_volume(output, labels(), SIZE)
    before = content(output)
    with pytest.raises(StateError, match="does not say that this agglomeration made it"):
        do(tmp_path)
    assert content(output) == before


def test_a_full_disk_ends_it_and_what_was_done_stays(
    tmp_path: Path, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Volume, "write", full)
        with pytest.raises(DataError, match="No space left on device"):
            do(tmp_path)
    assert not Path(parameters(tmp_path).output).exists()
    result = do(tmp_path)
    assert (result.scored, result.written, result.complete) == (0, 3, True)


def test_one_job_at_a_time_works_on_all_of_it(tmp_path: Path, looks: Looks) -> None:
    write_inputs(tmp_path)
    work = parameters(tmp_path).work_folder
    work.mkdir(parents=True)
    from apps.core.files import lock

    with (work / ".lock").open("a") as stream:
        lock(stream, work)
        with pytest.raises(StateError, match="another process works on"):
            do(tmp_path, action="score", part=Part(index=0, of=2))


def test_blocks_of_the_volume_are_chunks(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    inputs = open_inputs(parameters(tmp_path))
    assert all(inputs.segmentation.aligned(inputs.blocks[number]) for number in range(len(inputs.blocks)))


@needs_fib25
def test_the_published_network_joins_a_cut_object_and_no_two(tmp_path: Path) -> None:
    """An object of the published segmentation cut in two, beside another: the published network tells them apart."""
    source, box = f"{FIB25}/training_sample2_z000-170.h5", Box.between((40, 60, 60), (91, 161, 161))
    published = open_volume(f"{source}:google_ffn_segmentation").read(box)
    # Two neighbours, of which the first is the one that is cut.
    whole, other = int(published[16, 45, 13]), int(published[16, 25, 7])
    assert 0 < whole != other > 0
    found = np.where(np.isin(published, (whole, other)), published, 0).astype(np.uint64)
    beyond = np.indices(published.shape)[1] >= 46
    found[(published == whole) & beyond] = 1000
    write_volume(tmp_path / "labels.zarr", found, SIZE)
    result = run(
        parameters(
            tmp_path,
            image=f"{source}:raw",
            offset=box.offset,
            model=GOOGLE_CHECKPOINT,
            image_mean=128.0,
            image_std=33.0,
            block=(256, 256, 256),
            radius=(25, 50, 50),
            min_voxels=1000,
            settings=InferenceSettings(mode="fast"),
        ),
        silent,
    )
    edges = pd.read_parquet(result.edges)
    refused = {(row.a, row.b): row.refused for row in edges.itertuples()}
    assert refused[(whole, 1000)] == ""
    assert (min(whole, other), max(whole, other)) in refused
    assert [pair for pair, why in refused.items() if not why] == [(whole, 1000)]
    assert edges["iou"].max() > 0.85
