"""Changing a search while it runs: what the driver gets of it, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apps.core.errors import DataError, ParameterError, StateError
from ensemble.search.control import Control, change_orders, nodes_of_others, orders_file, standing_orders
from ensemble.search.driver import Limits
from ensemble.search.seats import Seat, take_seat


def test_a_driver_takes_up_what_is_changed(tmp_path: Path) -> None:
    control = Control(Seat(0, tmp_path), Limits(4, 100, queued=2))
    assert control.limits() == Limits(4, 100, queued=2)
    (orders,) = change_orders(tmp_path, workers=8)
    assert (orders.workers, orders.trials) == (8, 100)
    assert control.limits() == Limits(8, 100, queued=2)
    change_orders(tmp_path, trials=7)
    assert control.limits() == Limits(8, 7, queued=2)


def test_the_next_driver_begins_with_its_own_numbers(tmp_path: Path) -> None:
    Control(Seat(0, tmp_path), Limits(4, 100))
    change_orders(tmp_path, workers=8)
    assert Control(Seat(0, tmp_path), Limits(2, 50)).limits() == Limits(2, 50)
    (orders,) = standing_orders(tmp_path)
    assert (orders.workers, orders.trials) == (2, 50)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"workers": 3}', '{"workers": 0, "trials": 5, "begun": 1}'])
def test_a_file_that_cannot_be_read_changes_nothing(content: str, tmp_path: Path) -> None:
    control = Control(Seat(0, tmp_path), Limits(4, 100))
    orders_file(tmp_path, 0).write_text(content)
    assert control.limits() == Limits(4, 100)


def test_a_removed_file_changes_nothing(tmp_path: Path) -> None:
    control = Control(Seat(0, tmp_path), Limits(4, 100))
    orders_file(tmp_path, 0).unlink()
    assert control.limits() == Limits(4, 100)


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no driver has begun it"):
        change_orders(tmp_path, workers=3)
    Control(Seat(0, tmp_path), Limits(4, 100))
    with pytest.raises(ParameterError, match="--workers or --trials"):
        change_orders(tmp_path)
    with pytest.raises(ParameterError, match="workers = 0"):
        change_orders(tmp_path, workers=0)
    orders_file(tmp_path, 0).write_text("{")
    with (
        take_seat(tmp_path),
        pytest.raises(DataError, match=r"driver\.0\.json: does not hold what a driver is asked for"),
    ):
        change_orders(tmp_path, workers=3)


def test_orders_of_several_drivers_stand_together_while_they_live(tmp_path: Path) -> None:
    with take_seat(tmp_path) as first, take_seat(tmp_path) as second:
        assert (first.number, second.number) == (0, 1)
        one, two = Control(first, Limits(4, 100), "here"), Control(second, Limits(2, 100), "there")
        assert [orders.workers for orders in standing_orders(tmp_path)] == [4, 2]
        change_orders(tmp_path, trials=50)
        assert (one.limits(), two.limits()) == (Limits(4, 50), Limits(2, 50))
        assert nodes_of_others(tmp_path.parent, "here") == 0  # both are of this process
    assert [orders.workers for orders in standing_orders(tmp_path)] == [2]  # the last one


def test_drivers_want_as_many_trials_as_any_of_them_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.search.control.OTHERS_LOOK_S", 0.0)
    with take_seat(tmp_path) as first:
        one = Control(first, Limits(4, 10))
        with take_seat(tmp_path) as second:
            two = Control(second, Limits(2, 60))
            assert (one.limits(), two.limits()) == (Limits(4, 60), Limits(2, 60))
        assert one.limits() == Limits(4, 10)


def test_orders_of_the_dead_that_cannot_be_read_hold_nobody_up(tmp_path: Path) -> None:
    Control(Seat(0, tmp_path), Limits(4, 100))
    orders_file(tmp_path, 7).write_text('{"workers": 3}')
    assert [orders.workers for orders in standing_orders(tmp_path)] == [4]


def test_nodes_of_other_drivers_are_counted_by_site(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    script = (
        "import sys, time; from pathlib import Path; from ensemble.search.control import Control\n"
        "from ensemble.search.driver import Limits; from ensemble.search.seats import take_seat\n"
        "with take_seat(Path(sys.argv[1])) as seat:\n"
        "    Control(seat, Limits(8, 100), 'here'); print('begun', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        with take_seat(folder) as seat:
            assert seat.number == 1
            assert seat.others() == [0]
            Control(seat, Limits(2, 100), "here")
            assert nodes_of_others(tmp_path, "here") == 8
            assert nodes_of_others(tmp_path, "elsewhere") == 0
            other.kill()
            other.wait()
            assert not seat.taken(0)
            assert seat.taken(1)
            assert nodes_of_others(tmp_path, "here") == 0
        assert nodes_of_others(tmp_path, "here") == 0, "what the last one was asked for counts no more"
    finally:
        other.kill()
        other.wait()
