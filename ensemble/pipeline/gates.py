"""Gates: which sections are good enough for the next step, and which of the others a person has accepted.

An acceptance is of a section as it was measured: it holds for what is no worse than that, but for a little (`SLACK`),
as a stack that has grown moves the measures of all its sections by some.  A section that is made anew, and is worse,
is held again.
"""

from __future__ import annotations

import fcntl
import getpass
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.core.quality import SectionQuality, StageQuality

ACCEPTANCES_FILE = "gates.json"

# How much worse than it was accepted a measure may become, as a share of it.
SLACK = 0.05

Verdict = Literal["passed", "held", "accepted"]


@dataclass(frozen=True)
class Miss:
    """A measure that is worse than its gate's threshold."""

    measure: str
    value: float
    threshold: float
    better: Literal["higher", "lower"]
    unit: str = ""

    def __str__(self) -> str:
        limit = "at least" if self.better == "higher" else "at most"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.measure} {self.value:.4g}{unit}, expected {limit} {self.threshold:.4g}"


class Acceptance(Parameters, frozen=True, kw_only=True):
    """One section that passes all the same."""

    step: Annotated[str, Meta(description="whose gate held it")]
    section: Annotated[int, Meta(ge=0, description="its number")]
    values: Annotated[dict[str, float], Meta(description="what it missed, as measured: no worse than this passes")]
    reason: Annotated[str, Meta(description="why it is good enough, in the words of who accepted it")] = ""
    who: Annotated[str, Meta(description="user name")] = ""
    when: Annotated[float, Meta(description="UTC epoch seconds")] = 0.0


class Acceptances(Parameters, frozen=True, kw_only=True):
    """`gates.json` of a campaign."""

    accepted: tuple[Acceptance, ...] = ()

    def by_section(self) -> dict[tuple[str, int], Acceptance]:
        """(step, section) -> its acceptance."""
        return {(each.step, each.section): each for each in self.accepted}

    def of(self, step: str, section: int) -> Acceptance | None:
        return next((each for each in self.accepted if (each.step, each.section) == (step, section)), None)


def misses(found: SectionQuality, thresholds: Mapping[str, float], quality: StageQuality) -> list[Miss]:
    """The measures that are worse than their threshold.  One that cannot be told (None) misses nothing."""
    missed = []
    for name, threshold in thresholds.items():
        value, measure = found.values.get(name), quality.measure(name)
        if value is not None and not _good(value, threshold, measure.better):
            missed.append(Miss(name, value, threshold, measure.better, measure.unit))
    return missed


def judge(missed: Iterable[Miss], acceptance: Acceptance | None) -> Verdict:
    """Whether a section passes, is held, or passes because it has been accepted as it is."""
    missed = list(missed)
    if not missed:
        return "passed"
    if acceptance is None:
        return "held"
    known = acceptance.values
    covered = all(miss.measure in known and _no_worse(miss, known[miss.measure]) for miss in missed)
    return "accepted" if covered else "held"


def load_acceptances(folder: Path) -> Acceptances:
    """Those of the campaign in `folder`."""
    file = folder / ACCEPTANCES_FILE
    return Acceptances.load(file) if file.is_file() else Acceptances()


def accept(folder: Path, step: str, held: Mapping[int, Iterable[Miss]], reason: str) -> None:
    """Write down that these sections (number -> what it misses) pass; what was accepted of them before is replaced."""
    now, who = time.time(), getpass.getuser()
    new = [
        Acceptance(
            step=step,
            section=section,
            values={miss.measure: miss.value for miss in missed},
            reason=reason,
            who=who,
            when=now,
        )
        for section, missed in held.items()
    ]
    _change(folder, step, held, new)


def revoke(folder: Path, step: str, sections: Iterable[int]) -> None:
    """Take acceptances back.  Raises ParameterError where one of the sections has not been accepted."""
    sections = list(sections)
    known = load_acceptances(folder)
    strange = [section for section in sections if known.of(step, section) is None]
    if strange:
        raise ParameterError(f"step {step}, sections {strange}: were not accepted; `ensemble gate ls` shows which are")
    _change(folder, step, sections, [])


def _change(folder: Path, step: str, sections: Iterable[int], new: list[Acceptance]) -> None:
    gone = set(sections)
    with (folder / f"{ACCEPTANCES_FILE}.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        kept = [each for each in load_acceptances(folder).accepted if each.step != step or each.section not in gone]
        every = sorted([*kept, *new], key=lambda each: (each.step, each.section))
        Acceptances(accepted=tuple(every)).save(folder / ACCEPTANCES_FILE)


def _no_worse(miss: Miss, accepted: float) -> bool:
    slack = SLACK * abs(accepted)
    return _good(miss.value, accepted - slack if miss.better == "higher" else accepted + slack, miss.better)


def _good(value: float, threshold: float, better: Literal["higher", "lower"]) -> bool:
    return value >= threshold if better == "higher" else value <= threshold
