"""Quality of a stage's result without ground truth: measures of each section, in one form for all stages.

A stage that can say how good its sections are has a module with `QUALITY = StageQuality(...)`, named in `MODULES`.
Gates, tables and plots read measures through it, and know no stage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.errors import DataError
from apps.core.parameters import Result

# Stage name -> module that holds its `QUALITY`.
MODULES: dict[str, str] = {
    "montage": "apps.montage.quality",
    "alignment": "apps.alignment.quality",
    "masking": "apps.masking.quality",
}


@dataclass(frozen=True)
class Measure:
    """One number that says how good a section is.

    Attributes:
        name: as gates and tables have it.
        better: whether a higher or a lower value is good.
        unit: "" where it has none.
        description: one line, for a reader of plots.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: str
    description: str


class SectionQuality(Result, frozen=True, kw_only=True):
    """The measures of one section, and what is wrong with it in words."""

    section: Annotated[int, Meta(ge=0, description="its number")]
    values: Annotated[dict[str, float | None], Meta(description="measure -> value; null where there is none to tell")]
    faults: Annotated[tuple[str, ...], Meta(description="what the stage found wrong, in words")] = ()


@dataclass(frozen=True)
class StageQuality:
    """How the quality of a stage's sections is read.

    Attributes:
        measures: in the order in which they are shown, the most telling first.
        read: (output folder of the stage, sections; None for all) -> those of them that are done, in order.
            Raises DataError where a file of the stage cannot be read.
        default_gate: measure -> the worst value that passes, where a user gives none.
    """

    measures: tuple[Measure, ...]
    read: Callable[[Path, tuple[int, ...] | None], list[SectionQuality]]
    default_gate: dict[str, float]

    def measure(self, name: str) -> Measure:
        """The measure of that name.  Raises DataError with the known names otherwise."""
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise DataError(f"{name!r}: no such measure; expected one of {', '.join(m.name for m in self.measures)}")


def load_quality(stage: str) -> StageQuality:
    """The quality of that stage.  Raises DataError, with those that have one, otherwise."""
    if stage not in MODULES:
        raise DataError(f"stage {stage!r}: tells no quality of its sections; those that do: {', '.join(MODULES)}")
    quality: StageQuality = importlib.import_module(MODULES[stage]).QUALITY
    return quality
