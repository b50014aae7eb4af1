"""What the search benchmarks evaluate: Ackley's function, after a sleep, with the worker's own record of when.

Only the standard library is imported, so that a peer in an environment of its own evaluates the same thing.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DIMENSIONS = 5
BOUND = 32.768
NAMES = tuple(f"x{axis}" for axis in range(DIMENSIONS))
SIGMA = 0.5
"""Of the logarithm of the sleep: one in four takes more than 1.24 times the mean, one in 100 more than 2.8 times."""

NEVER_S = 24 * 3600.0


def ackley(x: Sequence[float], optimum: Sequence[float]) -> float:
    """Ackley's function (Ackley 1987), turned round so that it is maximised: 0 at `optimum`, about -21 far from it."""
    away = [value - at for value, at in zip(x, optimum, strict=True)]
    distance = math.sqrt(sum(value**2 for value in away) / len(away))
    waves = sum(math.cos(2 * math.pi * value) for value in away) / len(away)
    return 20 * math.exp(-0.2 * distance) + math.exp(waves) - 20 - math.e


def optimum_of(seed: int) -> tuple[float, ...]:
    """Where the best is: off the centre of the space, where some systems look first."""
    rng = random.Random(seed)
    return tuple(rng.uniform(-BOUND / 2, BOUND / 2) for _ in range(DIMENSIONS))


@dataclass(frozen=True)
class Task:
    """What a system is set to do; it goes on until it is killed.

    Attributes:
        workers: how many evaluations run at a time.
        mean_s: mean of the log-normal sleep of an evaluation.
        seed: of the system, of the sleeps and of the place of the optimum.
        folder: of its own; the workers write `stamps.jsonl` there.
        failures: share of the evaluations that fail.
        hangs: share of the evaluations that never come back.
        limit_s: after which the system is to give an evaluation up; None: never.
    """

    workers: int
    mean_s: float
    seed: int
    folder: str
    failures: float = 0.0
    hangs: float = 0.0
    limit_s: float | None = None

    @property
    def stamps(self) -> Path:
        return Path(self.folder) / "stamps.jsonl"

    def save(self) -> Path:
        path = Path(self.folder) / "task.json"
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def load(cls, path: str) -> Task:
        return cls(**json.loads(Path(path).read_text()))


class Evaluations:
    """The function that all systems maximise.  May be called by many threads and processes at once.

    Every evaluation writes a line when it starts and one when it ends: the workers' own clocks (CLOCK_MONOTONIC, which
    is one clock for all processes of a machine).  How long it takes, and whether it fails or hangs, depends on the
    task's seed and the point alone.
    """

    def __init__(self, task: Task, failure: type[Exception] = ArithmeticError) -> None:
        self._task, self._failure = task, failure
        self._optimum = optimum_of(task.seed)
        self._numbers = itertools.count()
        self._file = os.open(task.stamps, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, x: Sequence[float]) -> float:
        """The objective at x.  Raises the failure given to the constructor where the task says so."""
        task, point = self._task, [float(value) for value in x]
        rng = random.Random(f"{task.seed} {point}")
        fate = rng.random()
        hangs = fate < task.hangs
        seconds = task.mean_s * math.exp(rng.gauss(-(SIGMA**2) / 2, SIGMA))
        name = f"{os.getpid()}-{next(self._numbers)}"
        self._write({"name": name, "start": time.monotonic(), "hangs": hangs, "x": point})
        time.sleep(NEVER_S if hangs else seconds)
        failed = fate < task.hangs + task.failures
        value = None if failed else ackley(point, self._optimum)
        self._write({"name": name, "end": time.monotonic(), "value": value})
        if failed:
            raise self._failure(f"this evaluation was meant to fail: {point}")
        return float(value) if value is not None else math.nan

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._file, (json.dumps(line) + "\n").encode())
