"""The stage: a model of annotated sections, masks of others, killed and begun again, shared by jobs, grown, damaged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.errors import DataError, DivergedError, ParameterError, StateError
from apps.core.progress import silent
from apps.core.quality import load_quality
from apps.core.volumes import open_volume, write_volume
from apps.ffn.checkpoint import weights_digest
from apps.masking.classes import OUTSIDE
from apps.masking.masker import NOTHING_SHOWN
from apps.masking.model import ModelInfo, load_model
from apps.masking.records import SectionRecord
from apps.masking.stage import STAGE, MaskingParameters, MaskingResult, run
from apps.unet.storage import save_model
from tests.apps.masking.samples import SHAPE, VOXEL, save, sections, training

ROOT = Path(__file__).resolve().parents[3]


class StopError(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With image.zarr, classes.zarr and the model `trained/model`."""
    folder = tmp_path_factory.mktemp("masking")
    save(folder)
    run(training(folder), silent)
    return folder


@pytest.fixture
def masked(folder: Path, tmp_path: Path) -> Path:
    """A folder with an image of its own, masked into `out`."""
    save(tmp_path, seed=5)
    act(folder, tmp_path, "all")
    return tmp_path


def act(trained: Path, place: Path, action: str, **given: Any) -> MaskingResult:
    """Run an action on the image in `place`, with the model in `trained`."""
    content = {"image": str(place / "image.zarr"), "output": str(place / "out"), "action": action, **given}
    if action != "prepare":
        content.setdefault("model", str(trained / "trained" / "model"))
    return run(MaskingParameters.from_json(content), silent)


def masks(place: Path) -> np.ndarray:
    return open_volume(str(place / "out" / "masks.zarr")).read()


def contents(output: Path) -> dict[str, str]:
    """Every file of the masks and records, but for locks."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def record(place: Path, section: int) -> SectionRecord:
    return SectionRecord.load(place / "out" / "sections" / f"{section:05d}.json")


def test_a_network_learns_its_classes(folder: Path) -> None:
    model = load_model(folder / "trained" / "model")
    assert min(score for score in model.info.validation.values() if score is not None) > 0.9
    assert model.info.provenance["settings"]["steps"] == model.info.steps == 60
    assert not (folder / "trained" / "checkpoint").exists()
    rows = (folder / "trained" / "curve.csv").read_text().split()
    assert rows[0] == "step,loss"
    assert [row.split(",")[0] for row in rows[1:]] == ["20", "40", "60"]
    assert float(rows[1].split(",")[1]) > float(rows[3].split(",")[1])


def test_a_model_that_is_there_is_kept(folder: Path) -> None:
    before = contents(folder / "trained")
    result = run(training(folder), silent)
    assert (result.made, result.kept, result.megapixels_per_second) == (0, 1, None)
    assert result.validation == load_model(folder / "trained" / "model").info.validation
    assert contents(folder / "trained") == before
    with pytest.raises(StateError, match="model of another training"):
        run(training(folder, seed=3), silent)
    assert contents(folder / "trained") == before


def test_a_damaged_model_is_named_and_made_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_nothing(monkeypatch)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "trained" / "model" / "weights.npz"
    with np.load(weights) as file:
        arrays = dict(file)
    arrays["logits/bias"] = arrays["logits/bias"] + 1
    np.savez(weights, **arrays)
    with pytest.raises(DataError, match="does not fit its checksum"):
        act(tmp_path, tmp_path, "all")
    weights.unlink()
    with pytest.raises(DataError, match=r"no weights\.npz"):
        act(tmp_path, tmp_path, "all")
    again = run(training(tmp_path, steps=6), silent)
    assert again.made == 1
    shutil.rmtree(tmp_path / "trained" / "model")
    with pytest.raises(DataError, match="the action train makes one"):
        act(tmp_path, tmp_path, "all")


def test_a_training_that_was_killed_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """kill -9 of the process, after its first checkpoint; the other one, of the fixture, ran through."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "parameters.json"
    parameters = training(tmp_path, "killed", checkpoint_every=1)
    parameters.save(file)
    command = [sys.executable, "-m", "apps.masking", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoint"
    limit = time.monotonic() + 90
    while not (checkpoint / "state.npz").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    steps = run_and_note_steps(parameters)
    assert 1 < steps[0] <= 60
    assert steps[-1] == 60
    killed, whole = (load_model(tmp_path / name / "model") for name in ("killed", "trained"))
    assert killed.info.checksum == whole.info.checksum
    assert killed.info.loss == whole.info.loss
    assert not checkpoint.exists()


def run_and_note_steps(parameters: MaskingParameters) -> list[float]:
    """The steps that a run of the training does."""
    steps = []

    def note(done: float, total: float, what: str = "") -> None:
        if what.startswith("training"):
            steps.append(done)

    run(parameters, note)
    return steps


def test_a_checkpoint_of_another_training_is_no_use(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    learn_nothing(monkeypatch)

    def stop(done: float, total: float, what: str = "") -> None:
        if what.startswith("training") and done == 11:
            raise StopError

    for _ in range(2):
        with pytest.raises(StopError):
            run(training(tmp_path, "new", steps=12), stop)
    assert (tmp_path / "new" / "checkpoint").is_dir()
    assert run_and_note_steps(training(tmp_path, "new", steps=8)) == list(range(1, 9))
    assert load_model(tmp_path / "new" / "model").info.steps == 8


def learn_nothing(monkeypatch: pytest.MonkeyPatch, loss: float = 1.0) -> None:
    """Steps leave the weights as they are: no network is compiled, for what is not about learning."""
    monkeypatch.setattr("apps.unet.trainer._compile", lambda model, optimizer, loss_of: lambda images, shares: loss)


def test_what_cannot_be_trained_on_is_refused_before_any_work(tmp_path: Path) -> None:
    image, classes = sections()
    save(tmp_path)
    given = training(tmp_path).to_dict()

    def refused(kind: type[Exception], match: str, **changed: Any) -> None:
        with pytest.raises(kind, match=match):
            run(MaskingParameters.from_json(given | changed), silent)
        assert not (tmp_path / "trained" / "model").exists()

    refused(DataError, "no such volume", image=str(tmp_path / "none.zarr"))
    refused(DataError, "no such volume", labels=str(tmp_path / "none.zarr"))
    write_volume(tmp_path / "short.zarr", classes[:2], VOXEL)
    refused(DataError, "expected that of the image", labels=str(tmp_path / "short.zarr"))
    write_volume(tmp_path / "floats.zarr", classes.astype(np.float32), VOXEL)
    refused(DataError, "expected classes of an integer type", labels=str(tmp_path / "floats.zarr"))
    write_volume(tmp_path / "objects.zarr", classes.astype(np.uint32) * 500, VOXEL)
    refused(DataError, "holds the values", labels=str(tmp_path / "objects.zarr"))
    write_volume(tmp_path / "wide.zarr", image.astype(np.uint16), VOXEL)
    refused(DataError, "expected grey values of uint8", image=str(tmp_path / "wide.zarr"))
    write_volume(tmp_path / "black.zarr", np.zeros_like(image), VOXEL)
    refused(DataError, "shows nothing", image=str(tmp_path / "black.zarr"))
    (tmp_path / "file").write_text("in the way")
    refused(DataError, "cannot be written", output=str(tmp_path / "file" / "out"))


def test_a_training_that_diverges_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    learn_nothing(monkeypatch, loss=float("nan"))
    with pytest.raises(DivergedError, match="the loss is nan at step 0; lower learning_rate"):
        run(training(tmp_path, "new"), silent)
    assert not (tmp_path / "new" / "model").exists()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"action": "train"}, "labels: the action train needs"),
        ({"action": "segment", "labels": "l.zarr"}, "only the action train takes them"),
        ({"action": "train", "labels": "l.zarr", "model": "m"}, "the action train makes one"),
        ({"action": "all", "sections": [1]}, "only the action segment"),
        ({"action": "guess"}, "action"),
        ({"tile": 8}, "tile"),
        ({"threads": 0}, "threads"),
    ],
)
def test_impossible_parameters_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        MaskingParameters.from_json({"image": "i.zarr", "output": "out", **fields})


def test_sections_that_were_not_seen_are_masked(masked: Path) -> None:
    image, classes = sections(seed=5)
    found = masks(masked)
    volume = open_volume(str(masked / "out" / "masks.zarr"))
    assert (volume.shape, volume.dtype, volume.voxel_size_nm) == (SHAPE, np.uint8, VOXEL)
    assert tuple(volume.array.chunks) == (1, 64, 96)
    assert np.mean(found == classes) > 0.95
    assert np.all(found[image == 0] == OUTSIDE)
    for section in range(SHAPE[0]):
        told = record(masked, section)
        shares = np.bincount(found[section].ravel(), minlength=4) / found[section].size
        assert list(told.fractions.values()) == pytest.approx(shares.tolist(), abs=1e-6)
        assert told.expected_dice is not None
        assert told.entropy is not None
        assert told.boundary_sharpness is not None
        assert 0.7 < told.expected_dice <= 1
        assert 0 < told.entropy < 1
        assert 0.3 < told.boundary_sharpness <= 1
        assert told.faults == ()


def test_what_is_masked_is_not_masked_again(folder: Path, masked: Path) -> None:
    before = contents(masked / "out")
    result = act(folder, masked, "all")
    assert (result.made, result.kept, result.megapixels_per_second) == (0, SHAPE[0], None)
    assert contents(masked / "out") == before
    assert [entry.section for entry in result.sections] == list(range(SHAPE[0]))


def test_a_section_that_changes_is_masked_again_alone(folder: Path, masked: Path) -> None:
    image, _ = sections(seed=5)
    image[2] = image[2, ::-1]
    write_volume(masked / "image.zarr", image, VOXEL)
    old = masks(masked)
    result = act(folder, masked, "all")
    assert (result.made, result.kept) == (1, SHAPE[0] - 1)
    new = masks(masked)
    assert [bool(np.array_equal(a, b)) for a, b in zip(old, new, strict=True)] == [True, True, False, True]


def test_another_model_masks_anew(folder: Path, masked: Path) -> None:
    model = load_model(folder / "trained" / "model")
    weights = {**model.weights, "logits/bias": model.weights["logits/bias"] + np.float32(0.1)}
    info = ModelInfo.from_json(model.info.to_dict() | {"checksum": weights_digest(weights)})
    save_model(masked / "other", info, weights)
    result = act(folder, masked, "segment", model=str(masked / "other"))
    assert (result.made, result.kept) == (SHAPE[0], 0)


def test_jobs_that_share_the_sections_leave_what_one_leaves(folder: Path, masked: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(masked / "image.zarr", other / "image.zarr")
    assert act(folder, other, "prepare").made == 1
    assert act(folder, other, "prepare").kept == 1
    for chosen in ([3, 1], [0], [2]):
        assert act(folder, other, "segment", sections=chosen).made == len(chosen)
    assert contents(other / "out") == contents(masked / "out")


def test_a_section_killed_half_way_is_not_taken_for_whole(
    folder: Path, masked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(masked / "out")
    (masked / "out" / "sections" / "00001.json").write_text("{}")

    def die(*_: Any) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(SectionRecord, "save", die)
        with pytest.raises(StopError):
            act(folder, masked, "segment")
    assert not (masked / "out" / "sections" / "00001.json").exists()
    assert act(folder, masked, "segment").made == 1
    assert contents(masked / "out") == before


def test_an_image_that_grows_loses_nothing(folder: Path, masked: Path) -> None:
    old = masks(masked)
    image, _ = sections(6, seed=9)
    image[: SHAPE[0]] = sections(seed=5)[0]
    write_volume(masked / "image.zarr", image, VOXEL)
    with pytest.raises(StateError, match='run the action "prepare" first'):
        act(folder, masked, "segment", sections=[4])
    assert act(folder, masked, "prepare").kept == 1
    assert np.array_equal(masks(masked)[: SHAPE[0]], old)
    result = act(folder, masked, "segment")
    assert (result.made, result.kept) == (2, SHAPE[0])
    assert np.array_equal(masks(masked)[: SHAPE[0]], old)


@pytest.mark.parametrize("change", ["first_section", "extent"])
def test_masks_of_other_sections_are_made_anew(change: str, folder: Path, masked: Path) -> None:
    given: dict[str, Any] = {}
    if change == "first_section":
        given["first_section"] = 7
    else:
        write_volume(masked / "image.zarr", sections(seed=5)[0][:, :, :80], VOXEL)
    with pytest.raises(StateError, match="prepare"):
        act(folder, masked, "segment", **given)
    assert act(folder, masked, "prepare", **given).made == 1
    assert not (masked / "out" / "sections").exists()
    result = act(folder, masked, "segment", **given)
    assert result.made == SHAPE[0]
    assert result.sections[0].section == given.get("first_section", 0)
    assert result.sections[0].plane == 0


def test_a_section_that_shows_nothing_is_said_to(folder: Path, tmp_path: Path) -> None:
    image, _ = sections(seed=5)
    image[1] = 0
    write_volume(tmp_path / "image.zarr", image, VOXEL)
    result = act(folder, tmp_path, "all")
    assert result.faults == 1
    told = record(tmp_path, 1)
    assert (told.entropy, told.boundary_sharpness, told.faults) == (None, None, (NOTHING_SHOWN,))
    assert told.fractions["out_of_tissue"] == 1
    assert np.all(masks(tmp_path)[1] == OUTSIDE)


def test_sections_that_are_not_there_are_named(folder: Path, masked: Path) -> None:
    with pytest.raises(ParameterError, match=r"sections \[9\]: the image shows sections 0 to 3"):
        act(folder, masked, "segment", sections=[1, 9])


def test_two_processes_never_write_one_section_or_one_volume(folder: Path, masked: Path) -> None:
    output = masked / "out"
    (output / "sections" / "00002.json").unlink()
    with (output / "sections" / "00002.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="another process"):
            act(folder, masked, "segment")
    with (output / ".prepare.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="another process"):
            act(folder, masked, "prepare")
    assert act(folder, masked, "all").made == 1


def test_quality_is_read_from_the_records(folder: Path, masked: Path) -> None:
    quality = load_quality("masking")
    found = quality.read(masked / "out", None)
    assert [entry.section for entry in found] == [0, 1, 2, 3]
    told = record(masked, 2)
    assert found[2].values == {
        "expected_dice": told.expected_dice,
        "entropy": told.entropy,
        "boundary_sharpness": told.boundary_sharpness,
    }
    assert set(found[2].values) == {measure.name for measure in quality.measures}
    assert set(quality.default_gate) <= set(found[2].values)
    (masked / "out" / "sections" / "00001.json").unlink()
    assert [entry.section for entry in quality.read(masked / "out", (1, 2))] == [2]
    assert quality.read(masked / "nowhere", None) == []
    (masked / "out" / "sections" / "00003.json").write_text('{"section": 3}')
    with pytest.raises(DataError, match=r"00003\.json: is a damaged record"):
        quality.read(masked / "out", None)


def test_the_example_is_valid_and_names_a_training() -> None:
    parameters = MaskingParameters.from_json(json.dumps(STAGE.example))
    assert parameters.action == "train"
