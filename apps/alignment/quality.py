"""How good the sections of an alignment are, as its report says."""

from __future__ import annotations

from pathlib import Path

from apps.alignment.scoring import AlignmentReport, SectionScore
from apps.alignment.volume import Paths
from apps.core.errors import DataError, ParameterError
from apps.core.quality import Measure, SectionQuality, StageQuality

MEASURES = (
    Measure("misfit", "lower", "px", "RMS of what residuals of points that lie together have in common"),
    Measure("residual", "lower", "px", "RMS distance that points matched with other sections still lie apart"),
    Measure("correlation", "higher", "", "of the aligned plane with its neighbours: the lower of the two"),
    Measure("best_correlation", "higher", "", "the higher of the two: a bad neighbour leaves a good section one"),
    Measure("matches", "higher", "", "sections that it has matches with; 0 where nothing says where it belongs"),
    Measure("strain", "lower", "", "RMS of the principal stretch of the mesh's cells, less 1"),
    Measure("folds", "lower", "", "cells of the mesh that are turned over"),
)


def read(output: Path, sections: tuple[int, ...] | None = None) -> list[SectionQuality]:
    """The measures of the sections that were scored last.

    A section that is missing or held back is among them, with its fault and without values; so are values that there is
    nothing to tell by: a residual where nothing matches, a correlation where no neighbour shows its own image.
    """
    file = Paths(output).report
    if not file.is_file():
        return []
    try:
        report = AlignmentReport.load(file)
    except ParameterError as error:
        raise DataError(f"{error}; score the alignment again") from error
    wanted = None if sections is None else set(sections)
    messages: dict[int, list[str]] = {}
    alone = {fault.section for fault in report.faults if fault.kind == "unmatched"}
    for fault in report.faults:
        messages.setdefault(fault.section, []).append(fault.message)
    return [
        SectionQuality(
            section=score.section,
            values=_values(score, score.section in alone),
            faults=tuple(messages.get(score.section, ())),
        )
        for score in report.sections
        if wanted is None or score.section in wanted
    ]


def _values(score: SectionScore, alone: bool) -> dict[str, float | None]:
    """`alone`: it has an image to be matched, and no other section matches it."""
    likeness = [value for value in (score.correlation_previous, score.correlation_next) if value is not None]
    return {
        "misfit": score.misfit,
        "residual": score.residual,
        "correlation": min(likeness, default=None),
        "best_correlation": max(likeness, default=None),
        "matches": 0.0 if alone else float(len(score.matched_with)) or None,
        "strain": score.strain,
        "folds": None if score.folds is None else float(score.folds),
    }


# Well aligned sections of phantoms (32 of 576 x 576 pixels, noise of 12 and 40 grey levels) and of FIB-25 (40, plain
# and warped) have a misfit of at most 0.42 pixels and a strain of at most 0.03.  Of 96 sections that were bent by up
# to 8 pixels over 64, the 22 with a misfit over 1 lie wrong by 2.2 to 6.1 pixels, the others by up to 3; best
# correlations are 0.8 and more.  Sections of other tissue, or covered by dirt, correlate by 0.09 at most.  Thicker
# sections than these are less alike, so that gate stays close to what has nothing in common. Not gated: the lower
# correlation, which would hold back the good neighbours of a bad section too.
QUALITY = StageQuality(
    measures=MEASURES,
    read=read,
    default_gate={"misfit": 1.0, "best_correlation": 0.2, "matches": 1.0, "strain": 0.15, "folds": 0.0},
)
