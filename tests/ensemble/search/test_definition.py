"""Search files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import DataError, ParameterError
from ensemble.campaigns import CampaignData
from ensemble.search.definition import JobSize, ObjectivesError, Retries, Search, load_search
from tests.ensemble.search.simulated import parameters, prepared_campaign, simulated_search


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


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ("problem=HpProblem()", "no free hyperparameter"),
        ("problem=some, optimizer='nonsense'", "'nonsense'"),
        ("problem=lambda data: some, optimizer='nonsense'", "'nonsense'"),
        ("problem=some, optimizer_options={'nonsense': 1}", "nonsense"),
    ],
)
def test_search_that_cannot_work_is_refused_before_its_data_are_prepared(
    tmp_path: Path, changes: str, word: str
) -> None:
    text = (
        "from deephyper.hpo import HpProblem\n"
        "from ensemble.search import Search\n"
        "some = HpProblem()\n"
        "some.add_hyperparameter((0.0, 1.0), 'x')\n"
        f"search = Search(parameters=None, objective=None, {changes})\n"
    )
    with pytest.raises(ParameterError, match=word):
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


def test_a_default_outside_its_range_is_refused(tmp_path: Path) -> None:
    from deephyper.hpo import HpProblem

    def problem(data: CampaignData) -> HpProblem:
        space = HpProblem()
        space.add_hyperparameter((1, 10), "depth", default_value=20)
        return space

    data = prepared_campaign(tmp_path).data
    assert data is not None
    with pytest.raises(ParameterError, match=r"problem cannot be made.*default value 20.*'depth'"):
        Search(problem, parameters, lambda result: 0.0).problem_for(data)


def test_source_of_a_search_file_is_its_content(tmp_path: Path) -> None:
    text = "from ensemble.search import Search\nsearch = Search(lambda data: None, parameters=None, objective=None)\n"
    sources = [load_search(write(tmp_path / "s.py", text + comment))[1].source for comment in ("", "", "# changed\n")]
    assert sources[0] == sources[1] != sources[2]
    assert sources[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rungs": (10, 10)}, "rungs"),
        ({"rungs": (0, 10)}, "rungs"),
        ({"rungs": (30, 10)}, "rungs"),
        ({"objectives": ()}, "objectives"),
        ({"time_limit_s": 0.0}, "time_limit_s"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        simulated_search(**change)


@pytest.mark.parametrize(
    "make", [lambda: JobSize(0), lambda: JobSize(1, -1), lambda: Retries(0), lambda: Retries(1, -1)]
)
def test_sizes_and_retries_that_cannot_be_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ParameterError, match="expected at least"):
        make()


def test_back_off_doubles() -> None:
    assert [Retries(5, 10.0).wait_s(attempt) for attempt in (1, 2, 3)] == [10.0, 20.0, 40.0]


@pytest.mark.parametrize(
    ("found", "expected"),
    [(1, (1.0,)), ((1, 2), None), (float("nan"), None), (float("inf"), None)],
)
def test_objectives_are_as_many_finite_numbers_as_are_named(found: Any, expected: tuple[float, ...] | None) -> None:
    search = simulated_search(objective=lambda result: found)
    if expected is None:
        with pytest.raises((ValueError, ObjectivesError), match=r"objective (is|function gives)"):
            search.measure({})
    else:
        assert search.measure({}) == expected


def test_several_objectives() -> None:
    search = simulated_search(objective=lambda result: (1, 2), objectives=("accuracy", "cost"))
    assert search.measure({}) == (1.0, 2.0)
