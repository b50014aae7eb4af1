"""The shipped searches, and what they can suggest."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.model import ModelParameters, initial_weights
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.search.definition import Configuration, Search, TrialRequest, load_search
from ensemble.search.space import SearchSpace

SEARCHES = Path(__file__).resolve().parents[2] / "searches"
# Those whose trials are of the stage `trial`; test_masking.py has the other one.
NAMES = sorted(path.stem for path in SEARCHES.glob("*.py") if path.stem not in ("__init__", "common", "masking"))


@cache
def shipped(name: str) -> Search:
    """The search of that name, loaded as the command line does."""
    return load_search(SEARCHES / f"{name}.py")[1]


def sampled(search: Search, data: CampaignData, count: int, seed: int = 0) -> list[Configuration]:
    """So many random configurations of its space."""
    space = SearchSpace(search.problem_for(data))
    return space.configurations(space.sample(count, np.random.default_rng(seed)))


def made(search: Search, configuration: Configuration, data: CampaignData, budget: int | None) -> TrialParameters:
    """The configuration as parameters, into folder `trial`, of seed 3."""
    parameters = search.parameters(TrialRequest(configuration, data, "trial", 3, budget))
    assert isinstance(parameters, TrialParameters)
    return parameters


def checkpoint(folder: Path, model: ModelParameters) -> str:
    """A checkpoint folder of untrained weights."""
    info = CheckpointInfo(model=model, image_mean=1.0, image_std=2.0, step=5, provenance={})
    save_checkpoint(folder, info, initial_weights(model, 0), {})
    return str(folder)
