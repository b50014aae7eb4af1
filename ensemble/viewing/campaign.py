"""What a campaign has made that can be looked at, from the records that its jobs left in the sites' folders.

The Balsam service need not run: a job's work folder holds its `parameters.json` and, when it ended well, `result.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.core.errors import StateError
from apps.core.stage import RESULT_FILE
from ensemble.campaigns import open_campaign
from ensemble.sites.site import list_sites
from ensemble.viewing.choice import STAGES, Choice, choose
from ensemble.viewing.lineage import Record
from ensemble.viewing.stores import REPORT_FILE, VOLUMES

PARAMETERS_FILE = "parameters.json"


def stores_of_campaign(home: Path, name: str, given: Mapping[str, Any] | None = None) -> Choice:
    """The stores of the campaign's last steps that are there, and go together.

    `given`: layer -> store that the user names; the others are chosen to go with it.  Raises StateError where there is
    no such campaign, or it has made nothing that can be looked at, DataError where it is not clear what goes together.
    """
    campaign = open_campaign(home, name)
    root = f"{campaign.name}-{campaign.uid}"
    records = [r for site in list_sites(home) for r in read_records(site.path / "data" / root)]
    choice = choose(records, given)
    if not set(VOLUMES) & (choice.stores.keys() | (given or {}).keys()):
        raise StateError(
            f"campaign {name}: none of its jobs has made a volume that is there; run it further, or name the stores: "
            "ensemble view --image NAME.zarr --segmentation NAME.zarr"
        )
    report = campaign.folder / REPORT_FILE
    return replace(choice, stores={**choice.stores, "report": str(report)}) if report.is_file() else choice


def read_records(folder: Path) -> Iterator[Record]:
    """Records of the stages in STAGES below `folder`; a job that has failed has none."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if RESULT_FILE not in files or PARAMETERS_FILE not in files:
            continue
        try:
            record = json.loads((Path(place) / RESULT_FILE).read_bytes())
            if record["stage"] in STAGES:
                yield Record.of(json.loads((Path(place) / PARAMETERS_FILE).read_bytes()), record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # being written, or damaged: the job will say so, and others can be looked at
