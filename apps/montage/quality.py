"""How good the sections of a montage are, as their records say."""

from __future__ import annotations

from pathlib import Path

from apps.core.errors import DataError, ParameterError
from apps.core.quality import Measure, SectionQuality, StageQuality
from apps.montage.records import SectionRecord
from apps.montage.section import SectionFiles

MEASURES = (
    Measure(
        "overlap_correlation", "higher", "", "mean correlation of the tiles' overlaps where they were put, rejected too"
    ),
    Measure("tiles_present", "higher", "", "part of the section's tiles that were there and could be used"),
    Measure("tiles_connected", "higher", "", "part of the section's tiles that trusted pairs tie together"),
    Measure("pairs_used", "higher", "", "part of the overlapping pairs whose offsets were trusted and fit the others"),
    Measure("seam_residual", "lower", "px", "RMS distance of solved from measured offsets, over the pairs used"),
)

# Faults by which a section has one tile less.
_LOST = ("missing_file", "absent_tile", "unreadable_file", "not_grey", "wrong_size", "blank_tile")


def read(output: Path, sections: tuple[int, ...] | None = None) -> list[SectionQuality]:
    """The measures of the sections that are done; scores are null where a section has no pair of tiles to tell."""
    if sections is None:
        names = sorted((output / "sections").glob("*.json"))
        sections = tuple(int(path.stem) for path in names if path.stem.isdigit())
    found = []
    for section in sorted(set(sections)):
        files = SectionFiles.of(str(output), section)
        if not files.record.is_file():
            continue
        try:
            record = SectionRecord.load(files.record)
        except ParameterError as error:
            raise DataError(f"{error}; make the section again") from error
        if record.shape != (0, 0) and not files.image.is_dir():
            continue
        values = {"tiles_present": _present(record), **record.scores.to_dict()}
        messages = tuple(fault.message for fault in record.faults)
        found.append(SectionQuality(section=section, values=values, faults=messages))
    return found


def _present(record: SectionRecord) -> float | None:
    """Part of the tiles that the section should have; null where nobody knows of any."""
    lost = sum(fault.kind in _LOST for fault in record.faults)
    listed = len(record.tiles) + lost
    return len(record.tiles) / listed if listed else None


# Of 48 sections of the phantom (3 x 3 tiles, noise up to 90 grey levels, jitter up to 16 pixels, contrast down to 0.3)
# those with an overlap correlation over 0.25 are right to 0.5 pixels, and those that are wrong by more than a pixel
# have one under 0.16 and at most 7 of 9 tiles connected.  8 of 9 pass: one tile of resin makes no bad section.  Their
# residuals stay under 0.8; lenses that distort put more into it without a tile being wrong.
QUALITY = StageQuality(
    measures=MEASURES,
    read=read,
    default_gate={"overlap_correlation": 0.2, "tiles_present": 0.8, "tiles_connected": 0.8, "seam_residual": 2.0},
)
