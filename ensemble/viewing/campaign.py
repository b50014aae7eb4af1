"""What a campaign has made that can be looked at, from the records that its jobs left in the sites' folders.

The Balsam service need not run: a job's work folder holds its `parameters.json` and, when it ended well, `result.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apps.core.errors import StateError
from apps.core.stage import RESULT_FILE
from ensemble.campaigns import open_campaign
from ensemble.sites.site import list_sites
from ensemble.viewing.stores import Stores

PARAMETERS_FILE = "parameters.json"
# Layer -> where its store may be named, the last step of the way to a connectome first.  To add a stage, add its line.
Place = tuple[str, Literal["parameters", "result"], str]
PLACES: Mapping[str, tuple[Place, ...]] = {
    "segmentation": (("agglomeration", "result", "segmentation"), ("reconciliation", "result", "segmentation")),
    "image": (
        ("inference", "parameters", "image"),
        ("agglomeration", "parameters", "image"),
        ("alignment", "result", "aligned"),
        ("ingest", "result", "image"),
        ("phantom", "result", "image"),
    ),
    "labels": (
        ("evaluation", "parameters", "labels"),
        ("ingest", "result", "labels"),
        ("phantom", "result", "labels"),
    ),
    "meshes": (("meshes", "result", "meshes"),),
    "skeletons": (("skeletons", "result", "skeletons"),),
    "synapses": (("connectome", "result", "synapses"), ("synapses", "result", "synapses")),
}
STAGES = frozenset(stage for places in PLACES.values() for stage, _, _ in places)
# What is of one segmentation, and wrong beside another.
OF_SEGMENTATION = ("meshes", "skeletons")


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


def stores_of_campaign(home: Path, name: str, given: Collection[str] = ()) -> Stores:
    """The stores of the campaign's last steps that are there.

    `given`: layers that the user names, and that are not looked for.  Raises StateError where there is no such
    campaign, or it has made nothing that can be looked at.
    """
    campaign = open_campaign(home, name)
    root = f"{campaign.name}-{campaign.uid}"
    records = [r for site in list_sites(home) for r in read_records(site.path / "data" / root)]
    found = choose(records, given)
    if not ({"image", "segmentation", "labels"} & (found.keys() | set(given))):
        raise StateError(
            f"campaign {name}: none of its jobs has made a volume that is there; run it further, or name the stores: "
            "ensemble view --image NAME.zarr --segmentation NAME.zarr"
        )
    return Stores.from_json(found, f"campaign {name}")


def read_records(folder: Path) -> Iterator[Record]:
    """Records of the stages in PLACES below `folder`; a job that has failed has none."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if RESULT_FILE not in files or PARAMETERS_FILE not in files:
            continue
        try:
            record = json.loads((Path(place) / RESULT_FILE).read_bytes())
            if record["stage"] in STAGES:
                parameters = json.loads((Path(place) / PARAMETERS_FILE).read_bytes())
                result = record["result"] if record["result"].get("complete", True) else {}
                yield Record(record["stage"], float(record["cost"]["end"]), dict(parameters), dict(result))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being written, or damaged: the job will say so, and others can be looked at


def choose(records: list[Record], given: Collection[str] = ()) -> dict[str, Any]:
    """Fields of Stores: of every layer the newest store of the furthest stage, of those that are there."""
    newest = sorted(records, key=lambda record: -record.end)
    found: dict[str, Any] = {}
    for layer, places in PLACES.items():
        if layer in given:
            continue
        stores = (store for record, store in _candidates(newest, places) if _belongs(layer, record, found))
        store = next(stores, None)
        if store is not None:
            found[layer] = store
    if "segmentation" in found and "offset" not in given:
        found["offset"] = _offset(newest, found["segmentation"])
    return found


def _belongs(layer: str, record: Record, found: Mapping[str, Any]) -> bool:
    """Whether a layer's store goes with the image and the segmentation that were found."""
    if layer in OF_SEGMENTATION:
        return record.parameters.get("segmentation") == found.get("segmentation")
    if layer == "labels" and "image" in found:  # a pipeline may have learnt from another volume
        of = record.result.get("image") or record.parameters.get("image")
        return of in (None, found["image"])
    return True


def _candidates(newest: list[Record], places: tuple[Place, ...]) -> Iterator[tuple[Record, str]]:
    for stage, part, field in places:
        for record in newest:
            store = getattr(record, part).get(field) if record.stage == stage else None
            if isinstance(store, str) and Path(store).exists():
                yield record, store


def _offset(newest: list[Record], segmentation: str) -> list[int]:
    """First voxel of the segmentation in the image, zyx, as the job that made it had it."""
    for record in newest:
        if record.result.get("segmentation") == segmentation:
            box = (record.parameters.get("grid") or record.parameters).get("box")
            return list(box["offset"]) if box else list(record.parameters.get("offset", (0, 0, 0)))
    return [0, 0, 0]
