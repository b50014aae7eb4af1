"""Shares of a stage's work: several jobs do one step, each its part, and a last one without a part completes it.

The contract of a stage whose parameters have the field `part`:

- it names its phases (`Stage.phases`), in their order; each is an action, and shared between parts or the work of one
  job;
- the work of a shared phase is a fixed sequence of units, whatever the number of parts; a unit writes whole chunks or
  files of its own, under a temporary name that is renamed, and is not done again where it is there;
- with `part` it does the units of `share(units, part)`, in any order and beside the other parts;
- without `part` it does every unit that is not there yet; with the action `all` (where it has actions), all phases.

So one job is the whole stage, many jobs are the same stage, and the bytes do not depend on how many there were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters


class Part(Parameters, frozen=True, kw_only=True):
    """The share of one of several jobs."""

    index: Annotated[int, Meta(ge=0, description="this job's number, from 0 on")]
    of: Annotated[int, Meta(ge=1, description="how many jobs there are")]

    def check(self) -> None:
        if self.index >= self.of:
            raise ParameterError(f"part {self.index} of {self.of}: expected an index from 0 to {self.of - 1}")


def share(units: int, part: Part | None) -> range:
    """The units of a part, all of them for None; shares are neighbours, and differ by at most one unit."""
    if part is None:
        return range(units)
    return range(units * part.index // part.of, units * (part.index + 1) // part.of)


@dataclass(frozen=True)
class Phase:
    """One phase of a stage that several jobs can do.

    Attributes:
        action: value of the stage's parameter `action`; empty for a stage without actions.
        shared: whether jobs share it by parts; otherwise one job does it, without a part.
    """

    action: str = ""
    shared: bool = False
