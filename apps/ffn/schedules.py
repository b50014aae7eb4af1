"""The learning rate of every step: scaled with the ranks, warmed up, then held or brought down.

Rules of distributed FFN training (Dong et al., arXiv 1905.06236): with N ranks a step sees N times the examples, so
that the rate grows with N or its square root, and is reached from 0 in a straight line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["constant", "cosine", "step"]
ScalingName = Literal["none", "linear", "sqrt"]


@dataclass(frozen=True)
class Schedule:
    """What decides the learning rate of a step.

    Attributes:
        learning_rate: that of one rank, at the end of the warm-up.
        steps: all steps of the training; `cosine` reaches 0 there.
        warmup_steps: steps over which the rate rises from 0; less than `steps`.
        step_every, step_factor: `step` multiplies the rate by the factor every so many steps after the warm-up.
    """

    learning_rate: float
    name: ScheduleName = "constant"
    steps: int = 1
    scaling: ScalingName = "none"
    ranks: int = 1
    warmup_steps: int = 0
    step_every: int = 1
    step_factor: float = 1.0


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """The rate of step `step` (0 is the first; the first of a warm-up has the rate 0)."""
    factors = {"none": 1.0, "linear": float(schedule.ranks), "sqrt": math.sqrt(schedule.ranks)}
    peak = schedule.learning_rate * factors[schedule.scaling]
    if step < schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    after = step - schedule.warmup_steps
    if schedule.name == "cosine":
        return 0.5 * peak * (1.0 + math.cos(math.pi * after / max(schedule.steps - schedule.warmup_steps, 1)))
    if schedule.name == "step":
        return peak * math.pow(schedule.step_factor, after // schedule.step_every)
    return peak
