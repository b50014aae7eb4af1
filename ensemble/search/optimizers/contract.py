"""What every optimiser does: suggest configurations, learn from what became of them.

An optimiser knows nothing of jobs, trials or time.  It is not thread-safe: one thread owns it.  It is deterministic:
the same constructor arguments and the same sequence of calls give the same suggestions, in any process.

Every configuration is in one of three states here.  Told: its outcome is known.  Pending: asked for or avoided, outcome
unknown; a surrogate believes its own prediction of it.  Fresh: neither; only fresh configurations are suggested.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration


@dataclass(frozen=True)
class Observation:
    """What became of a configuration.

    Attributes:
        configuration: hyperparameter -> plain JSON value; None where a condition makes it inactive.
        objectives: one finite number an objective, each maximised; None where the configuration failed by its own fault
            (it was bad, diverged or hung), which is to be avoided but has no value.
    """

    configuration: Configuration
    objectives: tuple[float, ...] | None


class Optimizer(ABC):
    """Suggests configurations of one search space."""

    @abstractmethod
    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn from outcomes.  A configuration told again (a higher rung) replaces its earlier outcome.

        Raises ParameterError for a configuration of another space, or objectives of another number or not finite.
        """

    @abstractmethod
    def avoid(self, configurations: Iterable[Configuration]) -> None:
        """Never suggest these, and take them for pending: they run now, or are known from elsewhere.

        Raises ParameterError for a configuration of another space.
        """

    @abstractmethod
    def release(self, configurations: Iterable[Configuration]) -> None:
        """These were asked for and never used: no longer pending, and fresh again.  What was told stays told."""

    @abstractmethod
    def ask(self, count: int) -> list[Configuration]:
        """At most `count` fresh configurations, distinct; fewer (or none) only where the space holds no other.

        They are pending until they are told or released.
        """
