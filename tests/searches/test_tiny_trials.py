"""One trial of every shipped search, of a network and a volume small enough for a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.core.boxes import Box
from apps.core.progress import silent
from apps.trial.stage import TrialParameters, run
from ensemble.campaigns import CampaignData
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data
from tests.searches.samples import NAMES, checkpoint, made, sampled, shipped

STEPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CampaignData:
    folder = tmp_path_factory.mktemp("data")
    tiny = tiny_data(folder)
    box = Box.of((2, 2, 2), (16, 16, 16))
    return CampaignData(
        image=tiny.image,
        labels=tiny.labels,
        coordinates=tiny.coordinates,
        image_mean=MEAN,
        image_std=STD,
        voxel_size_nm=(10.0, 10.0, 10.0),
        data_hash="tiny",
        training_box=box,
        validation_box=box,
        test_box=box,
        fov=TINY.fov,
        deltas=TINY.deltas,
        trivial_answers={},
        init=checkpoint(folder / "init", TINY),
    )


def tiny(parameters: TrialParameters, output: Path) -> TrialParameters:
    """The same trial with TINY's depth, features and field of view, and a few steps; all else as the search has it."""
    values: dict[str, Any] = parameters.to_dict()
    training = values["training"]
    if training["model"] is not None:
        training["model"] |= {"depth": 2, "features": 4, "fov": TINY.fov, "deltas": TINY.deltas, "kernel": (3, 3, 3)}
    training |= {"output": str(output), "batch_size": 1, "threads": 1, "steps": min(training["steps"], STEPS)}
    training["warmup_steps"] = min(training["warmup_steps"], STEPS - 1)
    values["context"] = (0, 0, 0)
    values["inference"]["max_steps_per_cell"] = 0.02
    return TrialParameters.from_json(values)


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_gives_the_objectives(name: str, data: CampaignData, tmp_path: Path) -> None:
    search = shipped(name)
    chosen = sampled(search, data, 1, seed=2)[0]
    result = run(tiny(made(search, chosen, data, search.budget(0)), tmp_path / "trial"), silent)
    assert result.training.steps == (0 if result.training.fovs_per_second is None else STEPS)
    found = search.measure(result.to_dict())
    assert len(found) == len(search.objectives)
    assert found[0] <= -result.scores.vi + 1e-9
    assert result.flop_per_voxel >= 0
