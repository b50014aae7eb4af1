"""Shares of a stage's work."""

from __future__ import annotations

from itertools import pairwise

import pytest

from apps.core.errors import ParameterError
from apps.core.parts import Part, share


@pytest.mark.parametrize(("units", "parts"), [(10, 3), (2, 5), (0, 2), (7, 1)])
def test_shares_are_runs_that_make_up_the_whole(units: int, parts: int) -> None:
    runs = [share(units, Part(index=index, of=parts)) for index in range(parts)]
    assert [unit for run in runs for unit in run] == list(range(units))
    assert all(a.stop == b.start for a, b in pairwise(runs))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_no_part_is_all_of_it() -> None:
    assert share(5, None) == range(5)


def test_a_part_past_the_last_is_refused() -> None:
    with pytest.raises(ParameterError, match="part 3 of 3: expected an index from 0 to 2"):
        Part(index=3, of=3)
