"""What was made of what, from the records of a campaign's jobs: which image a segmentation is of, and which
segmentation the rest belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

from apps.core.boxes import Triple

SEGMENTING = ("agglomeration", "reconciliation")
# Stages whose parameters name a segmentation beside the image that it is of.
BOTH_READ = ("agglomeration", "synapses", "evaluation")
# Stages without a store to look at, that tell what others were made of.
BETWEEN = ("inference", "consensus")


@dataclass(frozen=True)
class Record:
    """What a job that ended well left.

    Attributes:
        end: when it ended, UTC epoch seconds.
        parameters: the stage's.
        result: the stage's; empty where the job did a share only, and what it names may not be there whole.
    """

    stage: str
    end: float
    parameters: dict[str, Any]
    result: dict[str, Any]

    @classmethod
    def of(cls, parameters: dict[str, Any], record: dict[str, Any]) -> Self:
        """From the job's parameters and its `result.json`."""
        result = record["result"] if record["result"].get("complete", True) else {}
        return cls(record["stage"], float(record["cost"]["end"]), dict(parameters), dict(result))


def same(a: object, b: object) -> bool:
    """Whether two names are of one store, however they are written."""
    return isinstance(a, str) and isinstance(b, str) and place(a) == place(b)


@cache
def place(store: str) -> str:
    """The one name of a store."""
    return os.path.realpath(store)


class Lineage:
    """Answers from records, the newest first; None where no record tells."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.newest = sorted(records, key=lambda record: -record.end)

    def image_of(self, segmentation: str) -> str | None:
        """The image that a segmentation was made of; else one that a job read together with it."""
        return self._made_of(segmentation) or next(
            (
                image
                for record in self._of_stages(BOTH_READ)
                if same(record.parameters.get("segmentation"), segmentation)
                and isinstance(image := record.parameters.get("image"), str)
            ),
            None,
        )

    def offset_of(self, segmentation: str) -> Triple:
        """First voxel of a segmentation in its image, zyx, as the job that made it had it; 0, 0, 0 where none tells."""
        for record in self._makers(segmentation):
            box = (record.parameters.get("grid") or record.parameters).get("box")
            return cast(Triple, tuple(box["offset"] if box else record.parameters.get("offset", (0, 0, 0))))
        return 0, 0, 0

    def base_of(self, segmentation: str) -> str | None:
        """The segmentation that another one was agglomerated from."""
        bases = (r.parameters.get("segmentation") for r in self._makers(segmentation) if r.stage == "agglomeration")
        return next((base for base in bases if isinstance(base, str)), None)

    def partners_in(self, synapses: Record) -> tuple[str | None, str | None]:
        """The segmentation that the partners of a table of synapses are objects of, and the image they were found in.

        `synapses`: record of the stage `synapses`, or of `connectome`, which takes its table from there.
        """
        segmentation, image = (synapses.parameters.get(name) for name in ("segmentation", "image"))
        table = synapses.parameters.get("synapses")
        for record in self._of_stages(("synapses",)) if isinstance(table, str) else ():
            if same(record.result.get("synapses"), table):
                return segmentation or record.parameters.get("segmentation"), record.parameters.get("image")
        return segmentation, image

    def _made_of(self, segmentation: str) -> str | None:
        for record in self._makers(segmentation):
            parameters = record.parameters
            if record.stage == "agglomeration" and isinstance(image := parameters.get("image"), str):
                return image
            if isinstance(pieces := parameters.get("pieces"), str):
                return self._pieces_of(pieces, frozenset())
        return None

    def _pieces_of(self, pieces: str, seen: frozenset[str]) -> str | None:
        """The image that a folder of segmented subvolumes was made of."""
        for record in self._of_stages(BETWEEN):
            parameters = record.parameters
            if record.stage == "inference" and _writes(parameters, pieces):
                return cast("str | None", parameters.get("image"))
            made = same(parameters.get("output"), pieces) or same(record.result.get("pieces"), pieces)
            first = parameters.get("first")
            if record.stage == "consensus" and made and isinstance(first, str) and place(pieces) not in seen:
                return self._pieces_of(first, seen | {place(pieces)})
        return None

    def _makers(self, segmentation: str) -> Iterator[Record]:
        """Records of jobs that wrote the segmentation, or a share of it."""
        for record in self._of_stages(SEGMENTING):
            told = record.result.get("segmentation") or record.parameters.get("output")
            if same(told, segmentation):
                yield record

    def _of_stages(self, stages: tuple[str, ...]) -> Iterator[Record]:
        return (record for record in self.newest if record.stage in stages)


def _writes(inference: dict[str, Any], folder: str) -> bool:
    """Whether an inference with these parameters writes pieces into the folder."""
    if same(inference.get("output"), folder):
        return True
    targets = inference.get("subvolumes") or ()
    return any(Path(place(target["output"])).is_relative_to(place(folder)) for target in targets)
