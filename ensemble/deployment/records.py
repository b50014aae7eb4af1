"""What the jobs of a deployment have told, summed up as they end: their full records are not kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_KEPT = ("count", "without_look", "objects", "steps", "masked_read", "masked_write")
_SECONDS = ("seed_seconds", "model_seconds", "other_seconds")


@dataclass
class Records:
    """Records by step; of each, what later steps, reports and the cost need.

    Attributes:
        by_step: `inference`, `compare`, `relabel`: a list; `solve`, `reconciliation`, `evaluation`: one record.
    """

    by_step: dict[str, Any] = field(default_factory=lambda: {"inference": []})

    def add(self, step: str, record: Mapping[str, Any]) -> None:
        """One of several jobs of a step."""
        self.by_step.setdefault(step, []).append(_slim(record))

    def put(self, step: str, record: Mapping[str, Any]) -> None:
        """The one job of a step."""
        self.by_step[step] = dict(record)

    def measured(self) -> Measured:
        """What the deployment has cost so far."""
        inference = self.by_step["inference"]
        kept = [record["result"] for record in inference]
        looked = sum(result["masked_read"]["voxels"] - result["masked_read"]["excluded"] for result in kept)
        spent = sum(sum(result[name] for name in _SECONDS) for result in kept)
        everything = [
            record for step in self.by_step.values() for record in (step if isinstance(step, list) else [step])
        ]
        costs = [record["cost"] for record in everything]
        return Measured(
            segmented_voxels=looked,
            speed=looked / spent if spent else None,
            process_seconds=sum(cost["end"] - cost["start"] for cost in costs),
            wall_seconds=max(c["end"] for c in costs) - min(c["start"] for c in costs) if costs else 0.0,
        )


@dataclass(frozen=True)
class Measured:
    """What a deployment has cost.

    Attributes:
        segmented_voxels: voxels of read boxes that masks left.
        speed: those a second of seeds and flood filling in one process; None where there was nothing to segment.
        process_seconds: of all jobs.
        wall_seconds: from the begin of the first job to the end of the last, with the pauses of an interrupted run.
    """

    segmented_voxels: int
    speed: float | None
    process_seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class KeptOut:
    """What the masks kept out of a deployment's box.

    Attributes:
        voxels: of the box.
        excluded: those of them in which no object could be.
        subvolumes: of the deployment.
        without_look: those of them in which there was nothing to look at, so that they needed no network.
    """

    voxels: int
    excluded: int
    subvolumes: int
    without_look: int

    def __str__(self) -> str:
        return (
            f"{self.excluded} of {self.voxels} voxels kept out ({100 * self.excluded / self.voxels:.1f} %), "
            f"{self.without_look} of {self.subvolumes} subvolumes without a look"
        )


def kept_out(inference: Iterable[Mapping[str, Any]]) -> KeptOut:
    """Summed over the records of a deployment's inference jobs, whose write boxes tile its box."""
    results = [record["result"] for record in inference]
    return KeptOut(
        voxels=sum(result["masked_write"]["voxels"] for result in results),
        excluded=sum(result["masked_write"]["excluded"] for result in results),
        subvolumes=sum(result["count"] for result in results),
        without_look=sum(result["without_look"] for result in results),
    )


def _slim(record: Mapping[str, Any]) -> dict[str, Any]:
    result = record["result"]
    kept = {name: result[name] for name in (*_KEPT, *_SECONDS) if name in result}
    return {"result": kept, "cost": {name: record["cost"][name] for name in ("start", "end")}}
