"""Search files."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.core.errors import DataError, ParameterError
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.variants import VARIANTS
from ensemble.search.definition import Configuration, Search, load_search
from ensemble.search.driver import SearchRun
from ensemble.search.evaluator import BalsamEvaluator, plain_configuration
from ensemble.search.ledger import Trial, TrialState
from ensemble.search.optimizer import BayesianOptimizer
from tests.ensemble.samples import campaign_data
from tests.ensemble.search.simulated import SimulatedJobs, parameters, prepared_campaign


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.py: no such search file"):
        load_search(tmp_path / "none.py")


@pytest.mark.parametrize("text", ["x = 1\n", "search = 'not a search'\n"])
def test_file_without_a_search_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ParameterError, match=r"s\.py: defines no search"):
        load_search(write(tmp_path / "s.py", text))


@pytest.mark.parametrize("text", ["import no_such_module\n", "def (:\n"])
def test_file_that_fails_is_named_with_its_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"s\.py: cannot be loaded: (ModuleNotFound|Syntax)Error"):
        load_search(write(tmp_path / "s.py", text))


def test_unknown_stage_is_named(tmp_path: Path) -> None:
    text = (
        "from ensemble.search import Search\n"
        "search = Search(problem=None, parameters=None, objective=None, stage='nonsense')\n"
    )
    with pytest.raises(DataError, match="'nonsense': no such stage"):
        load_search(write(tmp_path / "s.py", text))


def test_space_without_a_free_hyperparameter_is_refused(tmp_path: Path) -> None:
    from deephyper.hpo import HpProblem

    data = prepared_campaign(tmp_path).data
    assert data is not None
    problem = HpProblem()
    for add in (lambda: None, lambda: problem.add_hyperparameter(3, "constant")):
        add()
        with pytest.raises(ParameterError, match="no free hyperparameter"):
            Search(problem, parameters, lambda result: 0.0).problem_for(data)
    with pytest.raises(ParameterError, match="expected a deephyper HpProblem"):
        Search(object(), parameters, lambda result: 0.0).problem_for(data)


def test_shipped_search_makes_valid_trials(tmp_path: Path) -> None:
    name, search = load_search(Path(__file__).parents[3] / "searches" / "ffn_quick.py")
    data = prepared_campaign(tmp_path).data
    assert data is not None
    problem = search.problem_for(data)
    assert name == "ffn_quick"
    assert {"learning_rate", "optimizer", "depth", "features"} <= set(problem.hyperparameter_names)
    configuration = dict(problem.default_configuration)
    made = search.parameters(configuration, data, str(tmp_path), 3).to_dict()
    assert made["training"]["model"]["depth"] == configuration["depth"]
    assert made["training"]["learning_rate"] == configuration["learning_rate"]


def test_every_variant_of_the_variants_search_is_a_valid_trial(tmp_path: Path) -> None:
    _, search = load_search(Path(__file__).parents[3] / "searches" / "ffn_variants.py")
    data = prepared_campaign(tmp_path).data
    assert data is not None
    space = search.problem_for(data).space
    space.seed(0)
    seen = set()
    for sampled in map(plain_configuration, map(dict, space.sample_configuration(60))):
        made = search.parameters(sampled, data, str(tmp_path), 3).to_dict()["training"]["model"]
        assert made["variant"] == sampled["variant"]
        assert made["kernel"][0] == sampled["kernel_z"]
        if made["variant"] == "bottleneck":
            assert made["bottleneck"] == sampled["bottleneck"]
        if made["variant"] == "twoscale":
            assert made["coarse"][0] == sampled["coarse_z"]
        seen.add(made["variant"])
    assert seen == set(VARIANTS)


def test_starting_from_a_checkpoint_is_one_of_the_choices(tmp_path: Path) -> None:
    """Trials that start from it have its architecture, and no depth or features of their own."""
    model = ModelParameters(depth=2, features=4, fov=(13, 13, 13), deltas=(3, 3, 3))
    init = tmp_path / "checkpoint"
    info = CheckpointInfo(model=model, image_mean=1.0, image_std=2.0, step=5, provenance={})
    save_checkpoint(init, info, initial_weights(model, 0), {})
    _, search = load_search(Path(__file__).parents[3] / "searches" / "ffn_quick.py")
    data = campaign_data(str(init))
    campaign, jobs = prepared_campaign(tmp_path / "home"), SimulatedJobs()
    run = SearchRun(campaign, "s")
    run.folder.mkdir(parents=True)
    evaluator = BalsamEvaluator("s", search, data, run.ledger(), jobs, run.folder)
    optimizer = BayesianOptimizer(search.problem_for(data), search, evaluator, 3, 0, str(tmp_path / "log"))
    suggested: list[Configuration] = []
    for number in range(12):
        configuration = optimizer.ask(suggested)
        assert configuration is not None
        suggested.append(configuration)
        optimizer.tell([Trial(number, configuration, 0.0, TrialState.DONE, objective=-float(number % 5))])
    tuned = [c for c in suggested if c["init"] == str(init)]
    assert 0 < len(tuned) < 12
    for configuration in suggested:
        made = search.parameters(configuration, data, str(tmp_path), 3).to_dict()["training"]
        if configuration in tuned:
            assert (configuration["depth"], configuration["features"]) == (None, None)
            assert (made["model"], made["init"]) == (None, str(init))
        else:
            assert made["model"]["depth"] == configuration["depth"]
            assert made["init"] is None
