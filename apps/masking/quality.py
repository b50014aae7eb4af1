"""Quality of masks without ground truth: what each section's record says of how sure the network was."""

from __future__ import annotations

from pathlib import Path

from apps.core.errors import DataError, ParameterError
from apps.core.quality import Measure, SectionQuality, StageQuality
from apps.masking.records import Paths, SectionRecord

MEASURES = (
    Measure("expected_dice", "higher", "", "Dice of what is masked, were the network's own probabilities true"),
    Measure("entropy", "lower", "bit", "how unsure the network is of a class, mean over what it may mask"),
    Measure("boundary_sharpness", "higher", "", "how far its probabilities change from one class to the next"),
)


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
        values = {measure.name: getattr(record, measure.name) for measure in MEASURES}
        found.append(SectionQuality(section=number, values=values, faults=record.faults))
    return found


QUALITY = StageQuality(
    measures=MEASURES,
    read=read,
    # Of 48 sections of phantoms with noise, blur and contrast of their own, masked by the network of
    # benchmarks/masking.py, these hold all with an error (1 - mean Dice) over 0.4 and none under 0.2; of those taken as
    # a microscope does, where the error is about 0.05, none is nearer than 0.95, 0.18 and 0.53.
    default_gate={"expected_dice": 0.85, "entropy": 0.4, "boundary_sharpness": 0.35},
)
