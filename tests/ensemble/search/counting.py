"""An optimiser that counts, for tests of what stands between it and the driver."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ensemble.search.optimizers.contract import Observation, Optimizer

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration


class Numbers(Optimizer):
    """Suggests 0, 1, 2, ... and, from its n-th tell on, 1000 n, 1000 n + 1, ...; writes down its calls."""

    def __init__(self, fail_at: int = -1, seconds: float = 0.0) -> None:
        self.fail_at, self.seconds = fail_at, seconds
        self.next, self.tells = 0, 0
        self.calls: list[tuple[str, list[int]]] = []

    def tell(self, observations: Sequence[Observation]) -> None:
        self.calls.append(("tell", numbers(o.configuration for o in observations)))
        self.tells += 1
        self.next = 1000 * self.tells
        time.sleep(self.seconds)

    def avoid(self, configurations: Iterable[Configuration]) -> None:
        self.calls.append(("avoid", numbers(configurations)))

    def release(self, configurations: Iterable[Configuration]) -> None:
        self.calls.append(("release", numbers(configurations)))

    def ask(self, count: int) -> list[Configuration]:
        self.calls.append(("ask", [count]))
        if self.next == self.fail_at:
            raise ValueError("no idea")
        made = [{"n": self.next + i} for i in range(count)]
        self.next += count
        return made


def numbers(configurations: Iterable[Configuration]) -> list[int]:
    return [c["n"] for c in configurations]
