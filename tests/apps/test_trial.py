"""The trial stage: training, segmentation and scores in one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.evaluation.metrics import score
from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings
from apps.ffn.variants import VARIANTS
from apps.training.stage import TrainingParameters
from apps.training.stage import run as run_training
from apps.trial.stage import TrialParameters, TrialResult, run
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data

BOX = Box.of((2, 0, 0), (20, 32, 32))
STEPS = 150
SEGMENTED = Box.of((0, 0, 0), (24, 32, 32))  # with the context, as far as the volume goes


def parameters(
    folder: Path, box: Box = BOX, context: tuple[int, int, int] = (8, 8, 8), **fields: Any
) -> TrialParameters:
    data = tiny_data(folder)
    values: dict[str, Any] = {
        "volumes": data.volumes,
        "output": str(folder / "trial"),
        "model": TINY,
        "learning_rate": 0.005,
        "batch_size": 4,
        "steps": STEPS,
        "image_mean": MEAN,
        "image_std": STD,
    }
    training = TrainingParameters(**{**values, **fields})
    return TrialParameters(
        training=training, validation_box=box, context=context, inference=InferenceSettings(min_size=100)
    )


@dataclass(frozen=True)
class Whole:
    """A trial that was run at once: its folder, result, and the progress that it told of."""

    folder: Path
    result: TrialResult
    progress: list[float]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    progress: list[float] = []
    result = run(parameters(folder), lambda done, total, what="": progress.append(done / total))
    return Whole(folder, result, progress)


def test_trial_trains_segments_and_scores(whole: Whole) -> None:
    result, progress = whole.result, whole.progress
    segmentation = open_volume(result.segmentation).read()
    truth = open_volume(str(whole.folder / "labels.zarr")).read(BOX)
    assert result.scores == score(truth, segmentation)
    assert result.scores.vi < score(truth, np.ones_like(truth)).vi
    assert result.training.steps == STEPS
    assert result.inference == parameters(whole.folder).inference
    assert result.voxels_per_second > 0
    assert result.flop_per_voxel == pytest.approx(
        result.inference_steps * result.training.flop_per_fov / SEGMENTED.size
    )
    assert progress == sorted(progress)
    assert 0 < progress[0] < progress[-1] <= 1


def test_a_trial_goes_on_after_its_training(whole: Whole, tmp_path: Path) -> None:
    """Killed during the segmentation: the same command again does not train again, and gives the same bytes."""
    resumed_parameters = parameters(whole.folder, output=str(tmp_path / "resumed"))
    trained = run_training(resumed_parameters.training, silent)
    resumed = run(resumed_parameters, silent)
    assert resumed.training == trained
    assert resumed.scores == whole.result.scores
    one, other = (open_volume(result.segmentation).read() for result in (whole.result, resumed))
    np.testing.assert_array_equal(one, other)


def test_bad_validation_boxes_are_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves the volume"):
        run(parameters(tmp_path, Box.of((10, 0, 0), (20, 32, 32))), silent)
    with pytest.raises(DataError, match="smaller than the field of view"):
        run(parameters(tmp_path, Box.of((0, 0, 0), (5, 32, 32)), context=(0, 0, 0)), silent)
    unlabelled = parameters(tmp_path)
    write_volume(tmp_path / "labels.zarr", np.zeros((24, 32, 32), np.uint32), (10.0, 10.0, 10.0))
    with pytest.raises(DataError, match="0 everywhere in the validation box"):
        run(unlabelled, silent)
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_trains_and_segments(variant: str, whole: Whole, tmp_path: Path) -> None:
    """Better than one object everywhere, which is what an untrained network has at most."""
    model = ModelParameters.from_json(TINY.to_dict() | {"variant": variant, "bottleneck": 2})
    # The one of all other tests has been trained and has segmented already.
    result = whole.result if variant == TINY.variant else run(parameters(tmp_path, model=model), silent)
    labels = open_volume(str(whole.folder / "labels.zarr")).read(BOX)
    assert result.scores.objects >= 2
    assert result.scores.filled_fraction > 0.3
    assert result.scores.adapted_rand_error < 0.9 * score(labels, np.ones_like(labels)).adapted_rand_error
