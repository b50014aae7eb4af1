"""The evaluation stage and the trivial answers."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.stage import stage_main
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, write_volume
from apps.evaluation.baselines import LARGEST_FIT, box_of_the_fit, fit_threshold, segment_by_threshold
from apps.evaluation.metrics import score
from apps.evaluation.stage import STAGE, EvaluationParameters, run

VOXEL_SIZE = (10.0, 10.0, 10.0)


def rooms(seed: int = 0, size: int = 32, wall: int = 2, noise: float = 20.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Bright rooms between dark walls: (image uint8, labels uint32 with walls 0), zyx."""
    room = 8
    z, y, x = np.indices((size, size, size))
    labels = 1 + (z // room) * (size // room) ** 2 + (y // room) * (size // room) + x // room
    walls = (z % room < wall) | (y % room < wall) | (x % room < wall)
    grey = np.where(walls, 80.0, 160.0) + np.random.default_rng(seed).normal(0, noise, walls.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), np.where(walls, 0, labels).astype(np.uint32)


@dataclasses.dataclass
class Volumes:
    image: str
    labels: str
    truth: NDArray[Any]
    folder: Path

    def segmentation(self, labels: NDArray[Any]) -> str:
        path = str(self.folder / "segmentation.zarr")
        write_volume(path, labels, VOXEL_SIZE)
        return path


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    image, labels = rooms()
    write_volume(tmp_path / "image.zarr", image, VOXEL_SIZE)
    write_volume(tmp_path / "labels.zarr", labels, VOXEL_SIZE)
    return Volumes(str(tmp_path / "image.zarr"), str(tmp_path / "labels.zarr"), labels, tmp_path)


def test_scores_beside_the_trivial_answers(volumes: Volumes) -> None:
    found = volumes.segmentation(volumes.truth.astype(np.uint64) * 7)
    result = run(
        EvaluationParameters(segmentation=found, labels=volumes.labels, image=volumes.image, min_size=20), silent
    )
    assert result.scores is not None
    assert result.scores.vi == 0
    assert list(result.baselines) == ["one_object", "nothing", "threshold"]
    assert result.baselines["one_object"].vi == pytest.approx(np.log2(64))
    assert result.baselines["nothing"].filled_fraction == 0
    assert result.baselines["threshold"].vi < 1, "rooms with thick walls are easy"
    assert result.threshold is not None
    assert result.box == Box.of((0, 0, 0), (32, 32, 32))


def test_a_segmentation_of_a_part(volumes: Volumes) -> None:
    found = volumes.segmentation(volumes.truth[4:20, 8:, 8:])
    offset = (4, 8, 8)
    parameters = EvaluationParameters(segmentation=found, segmentation_offset=offset, labels=volumes.labels)
    result = run(parameters, silent)
    assert result.scores is not None
    assert (result.scores.vi, result.scores.filled_fraction) == (0, 1)
    assert result.box == Box.of(offset, (16, 24, 24))
    assert list(result.baselines) == ["one_object", "nothing"], "no image, no threshold"
    inner = EvaluationParameters(
        segmentation=found,
        segmentation_offset=offset,
        labels=volumes.labels,
        box=Box.of((8, 8, 8), (8, 8, 8)),
        baselines=False,
    )
    result = run(inner, silent)
    assert result.scores is not None
    assert (result.scores.objects, result.baselines) == (1, {})


def test_the_trivial_answers_alone(volumes: Volumes) -> None:
    box = Box.of((0, 0, 0), (16, 32, 32))
    alone = run(EvaluationParameters(labels=volumes.labels, image=volumes.image, box=box, min_size=20), silent)
    found = volumes.segmentation(volumes.truth)
    beside = EvaluationParameters(segmentation=found, labels=volumes.labels, image=volumes.image, box=box, min_size=20)
    assert alone.scores is None
    assert alone.baselines == run(beside, silent).baselines
    assert run(EvaluationParameters(labels=volumes.labels), silent).box == Box.of((0, 0, 0), (32, 32, 32))
    with pytest.raises(ParameterError, match="segmentation: is missing and baselines are off"):
        EvaluationParameters(labels=volumes.labels, baselines=False)


def test_the_threshold_is_fitted_in_its_own_box(volumes: Volumes) -> None:
    found = volumes.segmentation(volumes.truth[16:])
    parameters = EvaluationParameters(
        segmentation=found,
        segmentation_offset=(16, 0, 0),
        labels=volumes.labels,
        image=volumes.image,
        threshold_box=Box.of((0, 0, 0), (16, 32, 32)),
        min_size=20,
    )
    result = run(parameters, silent)
    image, labels = rooms()
    assert result.threshold == fit_threshold(image[:16], labels[:16], VOXEL_SIZE, 20)
    assert result.threshold is not None
    answer = segment_by_threshold(image[16:], result.threshold, VOXEL_SIZE)
    assert result.baselines["threshold"] == score(labels[16:], answer)
    assert run(parameters, silent) == result, "deterministic"


def test_smoothing_is_chosen_where_noise_needs_it() -> None:
    noisy, labels = rooms(noise=45.0, wall=3)
    clean, _ = rooms(noise=0.0, wall=1)
    assert fit_threshold(noisy, labels).sigma > 0
    assert fit_threshold(clean, rooms(wall=1)[1]).sigma == 0


def test_small_components_are_left_out_and_ids_are_consecutive() -> None:
    image, labels = rooms(noise=0.0)
    image[0, 0, 0] = 255  # a speck in a wall
    threshold = fit_threshold(image, labels, None, 2)
    answer = segment_by_threshold(image, threshold, None)
    assert answer[0, 0, 0] == 0
    assert np.array_equal(np.unique(answer), np.arange(65))


def test_the_fit_is_bounded() -> None:
    small, large = Box.of((1, 2, 3), (20, 100, 100)), Box.of((0, 0, 0), (20, 2000, 3000))
    assert box_of_the_fit(small) == small
    bounded = box_of_the_fit(large)
    assert large.contains(bounded)
    assert 0.9 * LARGEST_FIT < bounded.size <= LARGEST_FIT
    assert bounded.shape[0] == 20
    image, labels = rooms(size=96)
    start = time.perf_counter()
    fit_threshold(image, labels, None, 100)
    assert time.perf_counter() - start < 10


def test_bad_input_is_named(volumes: Volumes, tmp_path: Path) -> None:
    found = volumes.segmentation(volumes.truth)
    good: dict[str, Any] = {"segmentation": found, "labels": volumes.labels, "image": volumes.image}
    empty = str(tmp_path / "empty.zarr")
    write_volume(empty, np.zeros((32, 32, 32), np.uint32), VOXEL_SIZE)
    small = str(tmp_path / "small.zarr")
    write_volume(small, np.ones((16, 16, 16), np.uint8), VOXEL_SIZE)
    floats = str(tmp_path / "floats.zarr")
    write_volume(floats, np.ones((32, 32, 32), np.float32), VOXEL_SIZE)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"segmentation": str(tmp_path / "missing.zarr")}, "missing.zarr: no such volume"),
        ({"segmentation": floats}, "floats.zarr: has dtype float32; expected integer labels"),
        ({"labels": floats}, "floats.zarr: has dtype float32"),
        ({"labels": empty}, "empty.zarr in 0:32,0:32,0:32: is 0 everywhere"),
        ({"image": small}, r"small.zarr: has the shape \(16, 16, 16\); expected that of the labels"),
        ({"box": Box.of((0, 0, 0), (33, 8, 8))}, "box 0:33,0:8,0:8: leaves the segmentation"),
        ({"segmentation_offset": (1, 0, 0)}, "leaves the labels"),
        ({"threshold_box": Box.of((0, 0, 30), (8, 8, 8))}, "threshold_box 0:8,0:8,30:38: leaves the labels"),
    ]
    for change, words in cases:
        with pytest.raises(DataError, match=words):
            run(EvaluationParameters(**{**good, **change}), silent)
    # A segmentation of half the resolution would fit into the labels, and score nonsense there.
    coarse = str(tmp_path / "coarse.zarr")
    write_volume(coarse, volumes.truth[::2, ::2, ::2], (20.0, 20.0, 20.0))
    with pytest.raises(DataError, match=r"coarse.zarr: has voxels of \(20.0, 20.0, 20.0\) nm; expected those of the l"):
        run(EvaluationParameters(**{**good, "segmentation": coarse}), silent)
    write_volume(coarse, volumes.truth, UNKNOWN_VOXEL_SIZE)
    assert run(EvaluationParameters(**{**good, "segmentation": coarse}), silent).scores is not None, "nobody said"
    with pytest.raises(ParameterError, match="box 0:0,0:8,0:8: is empty"):
        EvaluationParameters(**{**good, "box": Box.of((0, 0, 0), (0, 8, 8))})
    with pytest.raises(ParameterError, match="threshold_box: is given without image"):
        EvaluationParameters(segmentation=found, labels=volumes.labels, threshold_box=Box.of((0, 0, 0), (8, 8, 8)))


def test_command_line(volumes: Volumes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps({"segmentation": volumes.segmentation(volumes.truth), "labels": volumes.labels}))
    assert stage_main(STAGE, [str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["vi"] == 0
    EvaluationParameters.from_json(STAGE.example)


def test_trivial_answers_alone(volumes: Volumes) -> None:
    result = run(EvaluationParameters(labels=volumes.labels, image=volumes.image, min_size=20), silent)
    assert result.scores is None
    assert set(result.baselines) == {"one_object", "nothing", "threshold"}
    with pytest.raises(ParameterError, match="expected something to score"):
        EvaluationParameters(labels=volumes.labels, baselines=False)
