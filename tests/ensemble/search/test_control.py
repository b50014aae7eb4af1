"""Changing a search while it runs: what the driver gets of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.core.errors import DataError, ParameterError, StateError
from ensemble.search.control import CONTROL_FILE, Control, change_orders, read_orders
from ensemble.search.driver import Limits


def test_a_driver_takes_up_what_is_changed(tmp_path: Path) -> None:
    control = Control(tmp_path / "search", Limits(4, 100, queued=2))
    assert control.limits() == Limits(4, 100, queued=2)
    orders = change_orders(tmp_path / "search", workers=8)
    assert (orders.workers, orders.trials) == (8, 100)
    assert control.limits() == Limits(8, 100, queued=2)
    change_orders(tmp_path / "search", trials=7)
    assert control.limits() == Limits(8, 7, queued=2)


def test_the_next_driver_begins_with_its_own_numbers(tmp_path: Path) -> None:
    Control(tmp_path, Limits(4, 100))
    change_orders(tmp_path, workers=8)
    assert Control(tmp_path, Limits(2, 50)).limits() == Limits(2, 50)
    orders = read_orders(tmp_path)
    assert orders is not None
    assert (orders.workers, orders.trials) == (2, 50)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"workers": 3}', '{"workers": 0, "trials": 5, "begun": 1}'])
def test_a_file_that_cannot_be_read_changes_nothing(content: str, tmp_path: Path) -> None:
    control = Control(tmp_path, Limits(4, 100))
    (tmp_path / CONTROL_FILE).write_text(content)
    assert control.limits() == Limits(4, 100)


def test_a_removed_file_changes_nothing(tmp_path: Path) -> None:
    control = Control(tmp_path, Limits(4, 100))
    (tmp_path / CONTROL_FILE).unlink()
    assert control.limits() == Limits(4, 100)


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no driver has begun it"):
        change_orders(tmp_path, workers=3)
    Control(tmp_path, Limits(4, 100))
    with pytest.raises(ParameterError, match="--workers or --trials"):
        change_orders(tmp_path)
    with pytest.raises(ParameterError, match="workers = 0"):
        change_orders(tmp_path, workers=0)
    (tmp_path / CONTROL_FILE).write_text("{")
    with pytest.raises(DataError, match=r"control\.json: does not hold workers"):
        change_orders(tmp_path, workers=3)
