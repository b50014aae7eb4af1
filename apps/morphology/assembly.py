"""Do and collect: every unit is forged into fragments, every object is assembled of its own, and then all are proved
to be there.

Two steps that several jobs can share, and a last one:

- `forge`: unit by unit; each writes one file with the fragments of all objects in it;
- `collect`: bucket by bucket, a fixed share of the objects by their ids; each object's fragments are read and put
  together, in the order of the units, and each bucket leaves a record of what it made;
- `finish`: every record is there, the tables are written, and the folder gets its name.

Memory is one unit, or one object, whatever the volume.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.core.errors import StateError
from apps.core.parameters import write_json
from apps.core.parts import Part, share
from apps.core.progress import Reporter
from apps.morphology.cutting import Segmentation, unknown_objects
from apps.morphology.fragments import Fragment, FragmentFile, read_extent, write_fragments
from apps.morphology.place import Workplace

Action = Literal["all", "forge", "collect", "finish"]
# What an assembled object is like: numbers by name, the same names for all.
Measures = dict[str, float]

_MOST_BUCKETS = 64


@dataclass(frozen=True)
class Craft:
    """What a stage makes.

    Attributes:
        segmentation: of which, in how many units, and of which objects.
        min_voxels: objects with fewer in the whole volume are left out, where none are named.
        forge: the fragments of a unit.
        assemble: (folder, id, fragments' bytes in the order of the units) writes an object's files into the folder
            and measures it; None where nothing is left of it.
        complete: (folder, records of all buckets) writes what concerns all objects.
    """

    segmentation: Segmentation
    min_voxels: int
    forge: Callable[[int], list[Fragment]]
    assemble: Callable[[Path, int, list[bytes]], Measures | None]
    complete: Callable[[Path, list[Path]], None]

    @property
    def units(self) -> int:
        return len(self.segmentation.grid)

    @property
    def least_voxels(self) -> int:
        """An object that is named is wanted, however small."""
        return self.min_voxels if self.segmentation.objects is None else 0

    @property
    def buckets(self) -> int:
        return min(_MOST_BUCKETS, self.units)


def assemble_all(place: Workplace, craft: Craft, action: Action, part: Part | None, report: Reporter) -> bool:
    """Do an action's share of the work; returns whether the output is complete.

    Raises StateError where another process works on the output, or a unit or bucket that an action builds on is
    missing; DataError where a file is damaged or cannot be written, or an object that is named is not there.
    """
    alone = action in ("all", "finish")
    if place.is_complete(alone):
        return True
    with place.hold(alone):
        if place.made() is not None:  # another job has finished it meanwhile
            return True
        if action == "all" and not _unit(place, craft.units - 1).is_file():
            craft.segmentation.check_named(report)
        if action in ("all", "forge"):
            _forge(place, craft, part, report)
        if action in ("all", "collect"):
            _collect(place, craft, part, report)
        if action in ("all", "finish"):
            _finish(place, craft)
            return True
    return False


def _unit(place: Workplace, number: int) -> Path:
    return place.folder / "units" / f"{number // 1000:06d}" / f"{number:09d}.fragments"


def _record(place: Workplace, bucket: int) -> Path:
    return place.folder / "collected" / f"{bucket}.json"


def rows(records: list[Path]) -> Iterator[list[dict[str, Any]]]:
    """The objects of each bucket: `id`, `voxels` and what was measured, ascending by id."""
    for path in records:
        yield json.loads(path.read_text())["objects"]


def _forge(place: Workplace, craft: Craft, part: Part | None, report: Reporter) -> None:
    mine = share(craft.units, part)
    for done, unit in enumerate(mine):
        report(done, len(mine), "forge")
        if not _unit(place, unit).is_file():
            write_fragments(_unit(place, unit), craft.forge(unit))
    report(len(mine), len(mine), "forge")


def _collect(place: Workplace, craft: Craft, part: Part | None, report: Reporter) -> None:
    for unit in range(craft.units):
        if not _unit(place, unit).is_file():
            raise StateError(f"{place.output}: unit {unit} of {craft.units} is missing; run the action forge first")
    _check_named(place, craft)
    mine = share(craft.buckets, part)
    for done, bucket in enumerate(mine):
        report(done, len(mine), "collect")
        if not _record(place, bucket).is_file():
            made = list(_assembled(place, craft, bucket))
            _record(place, bucket).parent.mkdir(exist_ok=True)
            write_json(_record(place, bucket), {"objects": made})
    report(len(mine), len(mine), "collect")


def _check_named(place: Workplace, craft: Craft) -> None:
    """Raise DataError where an object that is named is in no unit: jobs that forge a part each cannot know that."""
    left = set(craft.segmentation.objects or ())
    for unit in range(craft.units if left else 0):
        file = FragmentFile(_unit(place, unit))
        left.difference_update(file.ids[file.voxels > 0].tolist())
    if left:
        raise unknown_objects(str(craft.segmentation.volume.name), left)


def _assembled(place: Workplace, craft: Craft, bucket: int) -> Iterator[dict[str, Any]]:
    """Put the objects of a bucket together, one after the other."""
    parts: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    voxels: dict[int, int] = {}
    for unit in range(craft.units):
        file = FragmentFile(_unit(place, unit))
        for row in np.flatnonzero(file.ids % np.uint64(craft.buckets) == bucket).tolist():
            identifier = int(file.ids[row])
            parts.setdefault(identifier, []).append((unit, file.extent(row)))
            voxels[identifier] = voxels.get(identifier, 0) + int(file.voxels[row])
    place.result.mkdir(exist_ok=True)
    for identifier in sorted(parts):
        if voxels[identifier] < craft.least_voxels:
            continue
        found = (read_extent(_unit(place, unit), extent) for unit, extent in parts[identifier])
        measures = craft.assemble(place.result, identifier, [data for data in found if data])
        if measures is not None:
            yield {"id": identifier, "voxels": voxels[identifier], **measures}


def _finish(place: Workplace, craft: Craft) -> None:
    records = [_record(place, bucket) for bucket in range(craft.buckets)]
    for bucket, record in enumerate(records):
        if not record.is_file():
            raise StateError(
                f"{place.output}: bucket {bucket} of {craft.buckets} is missing; run the action collect first"
            )
    place.result.mkdir(exist_ok=True)
    craft.complete(place.result, records)
    totals: dict[str, float] = {}
    for objects in rows(records):
        for row in objects:
            totals["objects"] = totals.get("objects", 0) + 1
            for name, value in row.items():
                if name != "id":
                    totals[name] = totals.get(name, 0) + value
    place.publish(totals)
