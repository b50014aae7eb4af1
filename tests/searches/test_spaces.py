"""Everything that a shipped search can suggest is a valid trial, within the geometry that the campaign prepares."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import ParameterError
from apps.ffn.cost import flop_per_fov, receptive_field
from apps.ffn.model import ModelParameters
from apps.ffn.schedules import learning_rate_at
from apps.ffn.variants import VARIANTS
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.preparation import PHANTOM_SHAPE, Geometry, divide, geometry_for
from ensemble.search.definition import Configuration, JobSize, Search
from ensemble.search.optimizers import make_optimizer
from tests.ensemble.samples import campaign_data
from tests.searches.samples import NAMES, SEARCHES, checkpoint, made, sampled, shipped

SMALL = ModelParameters(depth=2, features=4, fov=(13, 13, 13), deltas=(3, 3, 3))
PUBLISHED = ModelParameters(depth=12, features=32, fov=(33, 33, 33), deltas=(8, 8, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CampaignData:
    """Of a campaign with a checkpoint to start from."""
    return campaign_data(checkpoint(tmp_path_factory.mktemp("init") / "checkpoint", SMALL))


def trials(search: Search, data: CampaignData, count: int = 300) -> list[tuple[Configuration, TrialParameters]]:
    budget = search.rungs[0] if search.rungs else None
    return [(chosen, made(search, chosen, data, budget)) for chosen in sampled(search, data, count)]


def test_there_are_the_searches_of_the_documentation() -> None:
    text = (SEARCHES.parent / "docs" / "searches.md").read_text()
    assert set(NAMES) == {
        "architecture",
        "ffn_quick",
        "ffn_variants",
        "inference_thresholds",
        "joint",
        "learning_rate",
        "precision",
        "scan",
    }
    for name in NAMES:
        assert f"ensemble search run searches/{name}.py" in text
        assert f"ensemble search run searches/{name}.py" in (SEARCHES / f"{name}.py").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_is_a_valid_trial_of_every_rung(name: str, data: CampaignData) -> None:
    """And its network can be built: its weights, its cost and what it sees follow from its description."""
    search = shipped(name)
    assert search.geometry is not None
    configurations = sampled(search, data, 300)
    assert len(configurations) == 300
    networks: set[str] = set()
    for chosen in configurations:
        for budget in search.rungs or (None,):
            parameters = made(search, chosen, data, budget)
            assert TrialParameters.from_json(parameters.to_dict()) == parameters
            training = parameters.training
            assert (training.output, training.volumes[0].image) == ("trial", data.image)
            assert parameters.validation_box == data.validation_box
            schedule = training.learning_rates(ranks=4)
            if training.steps:
                assert learning_rate_at(training.steps - 1, schedule) > 0
        if training.model is not None:
            assert search.geometry.covers(Geometry(training.model.fov, training.model.deltas))
            networks.add(training.model.hash())
            if len(networks) <= 60:
                assert flop_per_fov(training.model) > 0
                assert min(receptive_field(training.model)) >= 1
    assert networks or name == "inference_thresholds"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_configuration_of_two_rungs_differs_in_its_steps_alone(name: str, data: CampaignData) -> None:
    """So that a rung goes on from the checkpoint of the last."""
    search = shipped(name)
    if not search.rungs:
        assert name not in ("architecture", "joint", "ffn_variants")
        return
    for chosen in sampled(search, data, 20, seed=1):
        rungs = [made(search, chosen, data, budget).to_dict() for budget in search.rungs]
        steps = [rung["training"].pop("steps") for rung in rungs]
        assert all(rung == rungs[0] for rung in rungs)
        assert rungs[0]["training"]["warmup_steps"] <= 0.6 * steps[0]
        assert steps == sorted(set(steps))
        assert steps[-1] == rungs[0]["training"]["schedule_steps"]
        assert made(search, chosen, data, None).training.steps == steps[-1]
        ratios = [b / a for a, b in pairwise(search.rungs)]
        assert [b / a for a, b in pairwise(steps)] == pytest.approx(ratios)


@pytest.mark.parametrize("name", NAMES)
def test_the_generated_volume_is_large_enough(name: str) -> None:
    geometry = shipped(name).geometry
    assert geometry is not None
    divide(PHANTOM_SHAPE, geometry)


@pytest.mark.parametrize("name", NAMES)
def test_its_optimiser_suggests(name: str, data: CampaignData) -> None:
    search = shipped(name)
    optimizer = make_optimizer(
        search.optimizer,
        search.problem_for(data),
        objectives=len(search.objectives),
        initial_points=search.initial_points,
        options=search.optimizer_options,
    )
    suggested = optimizer.ask(4)
    assert len(suggested) == 4
    for chosen in suggested:
        made(search, chosen, data, search.rungs[0] if search.rungs else None)
        assert search.size_of(chosen).num_nodes >= 1


@pytest.mark.parametrize(("name", "size"), [("scan", 180), ("precision", 27)])
def test_grids_run_every_combination_once(name: str, size: int, data: CampaignData) -> None:
    search = shipped(name)
    optimizer = make_optimizer("grid", search.problem_for(data), objectives=len(search.objectives))
    suggested = optimizer.ask(1000)
    assert len({tuple(chosen.values()) for chosen in suggested}) == len(suggested) == size
    made_of = {made(search, chosen, data, None).hash() for chosen in suggested}
    assert len(made_of) == size


def test_the_scan_trains_all_on_the_same_number_of_fields_of_view(data: CampaignData) -> None:
    seen = {p.training.steps * p.training.batch_size for _, p in trials(shipped("scan"), data, 60)}
    assert seen == {64_000}


def test_trials_of_several_ranks_are_as_many_nodes_wide_as_they_need(data: CampaignData) -> None:
    search = shipped("learning_rate")
    for chosen, parameters in trials(search, data, 60):
        size = search.size_of(chosen)
        assert size.num_nodes * size.ranks_per_node == chosen["ranks"]
        assert size.ranks_per_node <= 4
        assert parameters.training.steps * parameters.training.batch_size * chosen["ranks"] == 256_000
        assert (chosen["scaling"] is None) == (chosen["ranks"] == 1)
        assert parameters.training.scaling == (chosen["scaling"] or "none")
    assert search.size_of({"ranks": 32}) == JobSize(num_nodes=8, ranks_per_node=4)
    assert search.size_of({"ranks": 2}) == JobSize(num_nodes=1, ranks_per_node=2)


@pytest.mark.parametrize("name", ["architecture", "joint", "ffn_variants"])
def test_options_of_a_variant_are_active_with_it_alone(name: str, data: CampaignData) -> None:
    seen = set()
    for chosen, parameters in trials(shipped(name), data):
        model = parameters.training.model
        assert model is not None
        assert (chosen["bottleneck"] is not None) == (chosen["variant"] == "bottleneck")
        assert (chosen["coarse_z"] is not None) == (chosen["variant"] == "twoscale")
        assert (model.variant, model.depth, model.features) == (chosen["variant"], chosen["depth"], chosen["features"])
        assert model.bottleneck == (chosen["bottleneck"] or 4)
        assert model.coarse[0] == (chosen["coarse_z"] or 2)
        assert model.kernel[0] == chosen["kernel_z"]
        assert model.kernel[1] == model.kernel[2] == chosen.get("kernel", 3)
        seen.add(model.variant)
    assert seen == set(VARIANTS)


@pytest.mark.parametrize("name", ["architecture", "joint"])
def test_fields_of_view_and_kernels_that_do_not_go_together_are_left_out(name: str, data: CampaignData) -> None:
    """Steps beyond half of the field of view, canvases beyond 49 voxels, networks dearer than the published one."""
    pairs, shapes = set(), set()
    for chosen, parameters in trials(shipped(name), data, 600):
        model = parameters.training.model
        assert model is not None
        pairs.add((chosen["fov"], chosen["delta"]))
        shapes.add((chosen["flatness"], model.fov, model.deltas))
        assert max(model.canvas) <= 49
        assert flop_per_fov(model) <= 1.001 * flop_per_fov(PUBLISHED)
    assert pairs == {(17, 4), (17, 6), (17, 8), (25, 4), (25, 6), (25, 8), (25, 12), (33, 4), (33, 6), (33, 8)}
    assert {(1, (33, 33, 33), (8, 8, 8)), (2, (17, 33, 33), (4, 8, 8)), (4, (5, 17, 17), (1, 4, 4))} <= shapes


def test_the_joint_search_has_a_rate_for_either_kind_of_optimiser(data: CampaignData) -> None:
    for chosen, parameters in trials(shipped("joint"), data, 100):
        plain = chosen["optimizer"] in ("sgd", "momentum")
        assert (chosen["plain_rate"] is not None, chosen["adaptive_rate"] is not None) == (plain, not plain)
        assert parameters.training.learning_rate == chosen["plain_rate" if plain else "adaptive_rate"]
        assert parameters.training.ema == (chosen["ema"] or None)
        assert parameters.inference.move == chosen["move"]


def test_thresholds_are_of_the_campaigns_model(data: CampaignData) -> None:
    search = shipped("inference_thresholds")
    for chosen, parameters in trials(search, data, 60):
        training, inference = parameters.training, parameters.inference
        assert (training.init, training.steps, training.model) == (data.init, 0, None)
        assert (training.image_mean, training.image_std) == (None, None)  # those of the checkpoint
        assert inference.init >= inference.move
        assert inference.grid_step == (chosen["grid_step"] or 16)
        assert inference.reverse_seeds == (chosen["seed_order"] == "reverse")
        assert inference.disco_seed_threshold == (0.0 if chosen["disco"] == "on" else None)
    google = campaign_data("model.ckpt-1")
    chosen = sampled(search, google, 1)[0]
    assert made(search, chosen, google, None).training.image_mean == google.image_mean


def test_thresholds_need_a_model() -> None:
    with pytest.raises(ParameterError, match="name it with --init"):
        shipped("inference_thresholds").problem_for(campaign_data())


def test_thresholds_prepare_the_geometry_of_the_model(tmp_path: Path) -> None:
    large = checkpoint(tmp_path / "large", PUBLISHED)
    geometry = shipped("inference_thresholds").geometry
    assert geometry is not None
    assert geometry_for(geometry, large) == Geometry((33, 33, 33), (8, 8, 8))


def test_precisions_are_crossed_and_repeated_with_other_seeds(data: CampaignData) -> None:
    found: dict[tuple[str, str], list[int]] = {}
    for _, parameters in trials(shipped("precision"), data, 300):
        key = parameters.training.precision, parameters.inference.network_precision
        found.setdefault(key, []).append(parameters.training.seed)
        assert parameters.inference.fovs_per_object == 1
    assert len(found) == 9
    assert all(set(seeds) == {3, 4, 5} for seeds in found.values())


@pytest.mark.parametrize(
    ("name", "result", "expected"),
    [
        ("scan", {"vi": 1.5}, (-1.5,)),
        ("architecture", {"vi": 1.5}, (-1.5, 0.0)),
        ("precision", {"vi": 2.0}, (-2.0, 0.0)),
        # 6.944e14 voxels in 200,000 node-hours are 964,506 a second: 3.4724 times as much as there is.
        ("joint", {"vi": 1.5}, (-1.5 - 1.79594,)),
    ],
)
def test_objectives(name: str, result: dict[str, Any], expected: tuple[float, ...]) -> None:
    measured = {"scores": {"filled_fraction": 1.0, **result}, "voxels_per_second": 1e9 / 3600}
    assert shipped(name).measure(measured) == pytest.approx(expected, rel=1e-4)


def test_a_checkpoint_to_start_from_is_one_of_the_choices_of_the_quick_search(data: CampaignData) -> None:
    """Trials that start from it have its architecture, and no depth or features of their own."""
    tuned = 0
    for chosen, parameters in trials(shipped("ffn_quick"), data, 30):
        training = parameters.training
        if chosen["init"] == data.init:
            tuned += 1
            assert (chosen["depth"], chosen["features"], training.model) == (None, None, None)
            assert training.init == data.init
        else:
            assert training.model is not None
            assert (training.model.depth, training.init) == (chosen["depth"], None)
    assert 0 < tuned < 30
    assert "init" not in sampled(shipped("ffn_quick"), campaign_data(), 1)[0]
