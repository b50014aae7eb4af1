"""Whose jobs make an output: the campaign that began it is kept in the deployment's folder, as only its jobs' records
tell what stands of them.

Those of another campaign know nothing of a piece that it has made anew since: the first one, asked again, would take
what is out of date for finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.core.errors import StateError
from apps.core.parameters import Parameters

OWNER_FILE = "campaign.json"


class Owner(Parameters, frozen=True, kw_only=True):
    """A campaign."""

    name: Annotated[str, Meta(description="what the user calls it")]
    jobs: Annotated[str, Meta(description="folder of its jobs: its name, and what tells it from others of that name")]


def claim(folder: Path, output: str, owner: Owner) -> None:
    """Note in a deployment's folder who makes the output.  Raises StateError where another campaign does."""
    file = folder / OWNER_FILE
    if not file.is_file():
        owner.save(file)
        return
    first = Owner.load(file)
    if first == owner:
        return
    if first.name == owner.name:
        who, what = f"an earlier campaign {first.name} ({first.jobs})", "if that is gone for good"
    else:
        who, what = f"campaign {first.name}", f"give --campaign {first.name}; if that is gone for good"
    raise StateError(
        f"{output}: {who} makes it, and what its jobs have done is not known to those of {owner.name} ({owner.jobs}); "
        f"{what}, remove {file}; or give another --out"
    )
