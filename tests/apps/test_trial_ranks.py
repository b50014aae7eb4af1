"""`mpiexec -n 2 python -m apps.trial parameters.json`: two ranks train, one segments, and the record is of both."""

from __future__ import annotations

import json
from pathlib import Path

from apps.core.boxes import Box
from apps.core.volumes import open_volume
from apps.evaluation.metrics import Scores, score
from apps.ffn.settings import InferenceSettings
from apps.training.parameters import TrainingParameters
from apps.trial.stage import TrialParameters
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data
from tests.rank_runs import needs_horovod, run

pytestmark = needs_horovod

BOX = Box.of((2, 0, 0), (20, 32, 32))


def test_two_ranks_are_one_trial(tmp_path: Path) -> None:
    training = TrainingParameters(
        volumes=tiny_data(tmp_path).volumes,
        output=str(tmp_path / "trial"),
        model=TINY,
        learning_rate=0.02,
        scaling="sqrt",
        batch_size=2,
        steps=60,
        image_mean=MEAN,
        image_std=STD,
    )
    file = tmp_path / "parameters.json"
    TrialParameters(training=training, validation_box=BOX, inference=InferenceSettings(min_size=100)).save(file)
    ended = run(2, ["-m", "apps.trial", file])
    assert ended.code == 0, ended.out + ended.error
    record = json.loads((tmp_path / "result.json").read_text())
    result = record["result"]
    assert record["ranks"] == result["training"]["ranks"] == 2
    assert result["training"]["steps"] == 60
    found = open_volume(result["segmentation"]).read()
    assert Scores.from_json(result["scores"]) == score(open_volume(str(tmp_path / "labels.zarr")).read(BOX), found)
    assert result["inference_steps"] > 0
    assert result["voxels_per_second"] > 0
