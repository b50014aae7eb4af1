"""Quality of masks without ground truth: what each section's record says of how sure the network was."""

from __future__ import annotations

from pathlib import Path

from apps.core.errors import DataError, ParameterError
from apps.core.quality import Measure, SectionQuality, StageQuality
from apps.masking.records import Paths, SectionRecord


def read(output: Path, sections: tuple[int, ...] | None) -> list[SectionQuality]:
    """Of the sections that are masked; see `StageQuality.read`."""
    folder = Paths(output).sections
    found = []
    for file in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        number = int(file.stem)
        if sections is not None and number not in sections:
            continue
        try:
            record = SectionRecord.load(file)
        except ParameterError as error:
            raise DataError(f"{file}: is a damaged record ({error}); remove it and mask the section again") from error
        values = {"entropy": record.entropy, "boundary_sharpness": record.boundary_sharpness}
        found.append(SectionQuality(section=number, values=values, faults=record.faults))
    return found


QUALITY = StageQuality(
    measures=(
        Measure("entropy", "lower", "bit", "how unsure the network is of a pixel's class, mean over what is shown"),
        Measure("boundary_sharpness", "higher", "", "how far its probabilities change from one class to the next"),
    ),
    read=read,
    default_gate={"entropy": 0.3, "boundary_sharpness": 0.5},
)
