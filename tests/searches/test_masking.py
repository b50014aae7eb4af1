"""The search for the masks' network: what it suggests is a training, and its data are prepared without coordinates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, StateError
from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.masking.stage import MaskingParameters, run
from ensemble.campaigns import CampaignData, CampaignPlan, create_campaign
from ensemble.local_jobs import LocalJobs
from ensemble.preparation import SECTIONS_SHAPE, check_plan, divide_columns, plan_preparation, prepare
from ensemble.search.definition import TrialRequest
from ensemble.search.optimizers import make_optimizer
from tests.apps.masking.samples import SHAPE, TRAINING, save
from tests.ensemble.samples import campaign_data
from tests.searches.samples import SEARCHES, sampled, shipped


def made(configuration: dict[str, Any], data: CampaignData, output: str = "trial") -> MaskingParameters:
    parameters = shipped("masking").parameters(TrialRequest(configuration, data, output, 3, None))
    assert isinstance(parameters, MaskingParameters)
    return parameters


def data_of(folder: Path) -> CampaignData:
    """What `prepare` would leave of the sections that tests have."""
    image, labels = save(folder)
    division = divide_columns(SHAPE)
    changed = {
        "image": image,
        "labels": labels,
        "coordinates": "",
        "training_box": division.training.to_dict(),
        "validation_box": division.validation.to_dict(),
    }
    return CampaignData.from_json(campaign_data().to_dict() | changed)


def test_it_says_how_it_is_run() -> None:
    command = "ensemble search run searches/masking.py"
    assert command in (SEARCHES / "masking.py").read_text()
    assert command in (SEARCHES.parent / "docs" / "searches.md").read_text()
    assert shipped("masking").stage == "masking"


def test_every_configuration_is_a_valid_training(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    seen = set()
    for chosen in sampled(shipped("masking"), data, 200):
        parameters = made(chosen, data)
        assert MaskingParameters.from_json(parameters.to_dict()) == parameters
        training, network = parameters.training, parameters.training.network
        assert (parameters.action, parameters.labels, parameters.output) == ("train", data.labels, "trial")
        assert (training.box, training.validation_box, training.seed) == (data.training_box, data.validation_box, 3)
        assert training.steps * training.batch_size * training.patch**2 == pytest.approx(200e6, rel=0.01)
        assert network.variant == chosen["variant"]
        seen.add(network.variant)
    assert seen == {"unet", "residual", "separable"}


def test_its_optimiser_suggests(tmp_path: Path) -> None:
    search, data = shipped("masking"), data_of(tmp_path)
    optimizer = make_optimizer(
        search.optimizer, search.problem_for(data), len(search.objectives), search.initial_points, options={}
    )
    for chosen in optimizer.ask(3):
        made(chosen, data)


def test_a_trial_gives_the_objectives(tmp_path: Path) -> None:
    search, data = shipped("masking"), data_of(tmp_path)
    content = made(sampled(search, data, 1)[0], data, str(tmp_path / "trial")).to_dict()
    content["training"] |= {name: TRAINING[name] for name in ("network", "patch", "batch_size")} | {
        "steps": 4,
        "warmup_steps": 1,
    }
    result = run(MaskingParameters.from_json(content | {"threads": 1}), silent).to_dict()
    dice, economy = search.measure(result)
    assert dice == pytest.approx((result["validation"]["vessel"] + result["validation"]["soma"]) / 2)
    assert economy == pytest.approx(-math.log10(result["flop_per_pixel"]))
    one = {"validation": {"vessel": 0.5, "soma": None}, "flop_per_pixel": 100.0}
    assert search.measure(one) == (0.5, -2.0)
    with pytest.raises(ValueError, match="neither vessels nor cell bodies"):
        search.measure({**one, "validation": {"vessel": None, "soma": None}})


def test_columns_are_divided() -> None:
    division = divide_columns((4, 64, 100))
    assert division.training == Box.of((0, 0, 0), (4, 64, 60))
    assert division.validation == Box.of((0, 0, 60), (4, 64, 20))
    assert division.test == Box.of((0, 0, 80), (4, 64, 20))
    with pytest.raises(DataError, match="too narrow"):
        divide_columns((4, 64, 1))


def test_data_are_prepared_without_coordinates(tmp_path: Path) -> None:
    image, labels = save(tmp_path)
    campaign = create_campaign(tmp_path / "home", CampaignPlan(name="masks", image=image, labels=labels))
    with LocalJobs(tmp_path / "jobs") as jobs:
        data = prepare(campaign, jobs, None).data
        assert (data.coordinates, data.fov, data.trivial_answers) == ("", (0, 0, 0), {})
        assert (data.training_box, data.validation_box) == (
            divide_columns(SHAPE).training,
            divide_columns(SHAPE).validation,
        )
        assert prepare(campaign, jobs, None).data == data
        geometry = shipped("scan").geometry
        assert geometry is not None
        with pytest.raises(StateError, match="use a new campaign"):
            prepare(campaign, jobs, geometry)
        campaign.save_data(CampaignData.from_json(data.to_dict() | {"coordinates": "c.npz"}))
        with pytest.raises(StateError, match="use a new campaign"):
            prepare(campaign, jobs, None)


def test_a_generated_volume_has_classes(tmp_path: Path) -> None:
    plan = CampaignPlan(name="masks")
    division = check_plan(plan, None)
    assert division == divide_columns(SECTIONS_SHAPE)
    phantom, volumes = plan_preparation(plan, tmp_path, division, None)
    parameters = load_stage("phantom").parameters.from_json(phantom.parameters)
    assert not parameters.design.plain
    assert volumes.parameters["labels"] == str(tmp_path / "phantom" / "masks.zarr")
