"""What every training of a U-Net is asked for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters

BatchSize = Annotated[int, Meta(ge=1, le=1024, description="examples a step")]
Steps = Annotated[int, Meta(ge=1, description="optimiser updates")]
LearningRate = Annotated[float, Meta(gt=0, le=1, description="of Adam, at its highest")]


class Schedule(Parameters, frozen=True, kw_only=True):
    """How long and how fast; stages give defaults to the fields that have none here."""

    batch_size: BatchSize
    steps: Steps
    learning_rate: LearningRate
    warmup_steps: Annotated[
        int, Meta(ge=0, description="steps over which the rate rises from 0; then it falls to 0")
    ] = 20
    seed: Annotated[int, Meta(ge=0, description="of the initial weights, the examples and their augmentation")] = 0
    checkpoint_every: Annotated[int, Meta(ge=1, description="steps from one checkpoint to the next")] = 100

    def check(self) -> None:
        if self.warmup_steps >= self.steps:
            raise ParameterError(
                f"training.warmup_steps = {self.warmup_steps} (20 where it is not given): expected fewer than "
                f"training.steps = {self.steps}"
            )
