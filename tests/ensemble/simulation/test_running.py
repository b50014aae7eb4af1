"""A small simulation through the real service: every trial comes to its end, in the way it was meant to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("deephyper")
pytest.importorskip("balsam")

from click.testing import CliRunner

from apps.core.errors import ParameterError
from ensemble.search.definition import Retries
from ensemble.simulation.costs import COMPONENTS
from ensemble.simulation.plan import Plan, Times
from ensemble.simulation.run import simulate
from tests.ensemble.search.simulated import simulated_search as some_search

SEARCH = """
from deephyper.hpo import HpProblem
from ensemble.search.definition import Search

problem = HpProblem()
problem.add_hyperparameter((0.0, 1.0), "x")
search = Search(problem=problem, parameters=None, objective=None, optimizer="random")
"""


@pytest.mark.service
def test_failures_hangs_and_retries_all_end(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    search = some_search(retries=Retries(attempts=2, backoff_s=0.1))
    times = Times("uniform", 0.4, 0.2)
    plan = Plan(16, times, None, trials=60, failures=0.3, hangs=0.05, time_limit_s=1.0, seed=1)
    measured = simulate(search, plan, folder=folder)
    journal = folder / "campaigns/simulation/searches/simulation/journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lost = [line["trial"] for line in lines if line["event"] == "attempt failed"]
    ended = {line["trial"]: line for line in lines if line["event"] == "ended"}
    assert sorted(ended) == list(range(60))
    assert set(measured.trials) == {"DONE", "FAILED"}
    assert sum(measured.trials.values()) == 60
    # Of 60 trials there are 18 that fail and 3 that hang, but for chance; killed ones are repeated and end well.
    assert set(measured.failures) == {"bad_configuration", "diverged", "hung"}
    assert lost
    assert all(ended[number]["failure"] is None and ended[number]["key"].endswith("attempt-2") for number in lost)
    assert sum(measured.failures.values()) == measured.trials["FAILED"]
    assert 0.0 < measured.hung < measured.utilisation < 1.0
    assert measured.rate > 2.0
    assert measured.best[-1][1] <= 0.0
    assert set(measured.cores) == set(COMPONENTS)
    assert measured.cores["server"] > 0.0
    assert json.loads(json.dumps(measured.to_dict(plan)))["plan"]["nodes"] == 16
    with pytest.raises(ParameterError, match="exists already"):
        simulate(search, plan, folder=folder)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--trial-seconds", "60"], "trial seconds"),
        (["--trial-seconds", "constant:1", "--failures", "2"], "failures"),
        (["--trial-seconds", "constant:1", "--objective", "nothing"], "objective"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(tmp_path: Path, arguments: list[str], what: str) -> None:
    from ensemble.cli.simulate import simulate as command

    file = tmp_path / "s.py"
    file.write_text(SEARCH)
    result = CliRunner().invoke(command, [str(file), "--nodes", "4", *arguments])
    assert isinstance(result.exception, ParameterError)
    assert what in str(result.exception)
