from __future__ import annotations

import pytest

from apps.ffn.schedules import Schedule, learning_rate_at


def rates(schedule: Schedule, steps: list[int]) -> list[float]:
    return [learning_rate_at(step, schedule) for step in steps]


def test_constant_is_the_same_throughout() -> None:
    assert rates(Schedule(0.1, steps=4), [0, 3]) == [0.1, 0.1]


def test_cosine_goes_from_the_rate_to_0() -> None:
    # 0.1 * (1 + cos(pi * t)) / 2 at t = 0, 1/3, 1/2, 1
    found = rates(Schedule(0.1, "cosine", steps=6), [0, 2, 3, 6])
    assert found == pytest.approx([0.1, 0.075, 0.05, 0.0])


def test_step_multiplies_every_so_many_steps() -> None:
    schedule = Schedule(0.8, "step", steps=100, step_every=10, step_factor=0.5)
    assert rates(schedule, [0, 9, 10, 19, 20, 30]) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.1])


def test_warm_up_rises_from_0_in_a_line_and_the_schedule_begins_after_it() -> None:
    constant = Schedule(0.4, steps=20, warmup_steps=4)
    assert rates(constant, [0, 1, 2, 3, 4, 5]) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    cosine = Schedule(0.4, "cosine", steps=20, warmup_steps=4)
    assert rates(cosine, [2, 4, 12, 20]) == pytest.approx([0.2, 0.4, 0.2, 0.0])
    step = Schedule(0.4, "step", steps=20, warmup_steps=4, step_every=5, step_factor=0.1)
    assert rates(step, [3, 4, 8, 9, 14]) == pytest.approx([0.3, 0.4, 0.4, 0.04, 0.004])


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 16.0), ("sqrt", 4.0)])
def test_scaling_with_the_ranks(scaling: str, factor: float) -> None:
    schedule = Schedule(0.01, steps=10, scaling=scaling, ranks=16, warmup_steps=2)  # type: ignore[arg-type]
    assert rates(schedule, [0, 1, 2, 9]) == pytest.approx([0.0, 0.005 * factor, 0.01 * factor, 0.01 * factor])
