"""Campaigns: one named body of work on one data set, with a folder that holds its plan, journal and table.

`<home>/campaigns/NAME` is the folder, or a symbolic link to it where the user chose the place (`--out`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import is_locked, try_lock
from apps.core.parameters import Parameters
from apps.core.volumes import absolute_volume

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLAN_FILE = "campaign.json"
IDENTITY_FILE = "identity.json"
DATA_FILE = "data.json"
TABLE_FILE = "results.parquet"
DRIVER_LOCK = "driver.lock"
_SHARED = "shared"


class CampaignPlan(Parameters, frozen=True, kw_only=True):
    """What a campaign is about, as the user gave it; a campaign never changes its plan."""

    name: Annotated[str, Meta(description="the campaign's name, also its Balsam tag")]
    image: Annotated[str | None, Meta(description="image volume; None for a generated phantom")] = None
    labels: Annotated[str | None, Meta(description="label volume (ground truth)")] = None
    voxel_size_nm: Annotated[
        tuple[float, float, float] | None, Meta(description="voxel size zyx in nm, for volumes that do not say")
    ] = None
    seed: Annotated[int, Meta(ge=0, description="seed of everything random in the campaign")] = 0
    init: Annotated[str | None, Meta(description="checkpoint that a trial may start from")] = None
    settings: Annotated[dict[str, str], Meta(description="further choices, by name")] = msgspec.field(
        default_factory=dict
    )

    def check(self) -> None:
        check_name(self.name, "campaign")
        if self.image is not None and self.labels is None:
            raise ParameterError(f"{self.image}: an image without labels cannot train or score a model; give --labels")
        if self.image is None and self.labels is not None:
            raise ParameterError(f"{self.labels}: labels without an image; give --data")


def plan_campaign(
    name: str, image: str | None = None, labels: str | None = None, init: str | None = None, **fields: Any
) -> CampaignPlan:
    """A plan whose files are named from the root: jobs, and later commands, run in other folders."""
    return CampaignPlan(
        name=name,
        image=absolute_volume(image) if image else None,
        labels=absolute_volume(labels) if labels else None,
        init=str(Path(init).absolute()) if init else None,
        **fields,
    )


class CampaignIdentity(Parameters, frozen=True, kw_only=True):
    """What tells this campaign from an earlier one of the same name whose folder was deleted: a random id."""

    uid: str
    created: float


class CampaignData(Parameters, frozen=True, kw_only=True):
    """The campaign's prepared data: what trials and deployment read.

    image, labels: OME-Zarr volumes, zyx.  coordinates: training coordinates (npz of apps.partition); "" where the
    campaign's searches need none, and then fov and deltas are 0.
    training_box, validation_box, test_box: disjoint boxes, zyx voxels.
    fov, deltas: the largest training canvas is fov + 2 * deltas, zyx voxels.
    trivial_answers: name -> scores on the validation box of answers that need no model.
    init: checkpoint that a trial may start from.
    """

    image: str
    labels: str
    coordinates: str
    image_mean: float
    image_std: float
    voxel_size_nm: tuple[float, float, float]
    data_hash: str
    training_box: Box
    validation_box: Box
    test_box: Box
    fov: Triple
    deltas: Triple
    trivial_answers: dict[str, dict[str, float]]
    init: str | None = None


@dataclass(frozen=True)
class Campaign:
    """An open campaign: its name, its folder, its plan, and the id that its Balsam jobs carry."""

    name: str
    folder: Path
    plan: CampaignPlan
    uid: str

    @property
    def data(self) -> CampaignData | None:
        """The prepared data; None before it is prepared."""
        file = self.folder / DATA_FILE
        return CampaignData.load(file) if file.is_file() else None

    def save_data(self, data: CampaignData) -> None:
        data.save(self.folder / DATA_FILE)

    @property
    def table(self) -> Path:
        return self.folder / TABLE_FILE

    @contextlib.contextmanager
    def driver_lock(self, shared: bool = False) -> Iterator[None]:
        """Hold the campaign for one driver, or for one of several drivers of its searches, which share it.

        Raises StateError where another process holds it, unless both share it.
        """
        with (self.folder / DRIVER_LOCK).open("a+") as stream:
            if not try_lock(stream, shared):
                stream.seek(0)
                holder = stream.read().strip()
                if holder.startswith(_SHARED):  # several may have written it at once
                    raise StateError(
                        f"campaign {self.name}: drivers that share a search drive it already; wait for them or end "
                        "them first (another search driver joins them with --shared)"
                    )
                raise StateError(
                    f"campaign {self.name}: process {holder or 'unknown'} drives it already; wait for it or end it "
                    "first" + (" (only drivers that were all started with --shared share it)" if shared else "")
                )
            stream.truncate(0)
            stream.write(_SHARED if shared else str(os.getpid()))
            stream.flush()
            yield
            if not shared:
                stream.truncate(0)

    @property
    def driven(self) -> bool:
        """Whether a driver, or several, hold the campaign just now."""
        return is_locked(self.folder / DRIVER_LOCK)

    @contextlib.contextmanager
    def preparation_lock(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the preparation of the data.  Where another driver prepares it, call `on_wait`, then wait."""
        with (self.folder / "preparation.lock").open("a") as stream:
            if not try_lock(stream):
                on_wait()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def check_name(name: str, what: str) -> None:
    """Raise ParameterError unless `name` can be a folder and a Balsam tag."""
    if not NAME.fullmatch(name):
        raise ParameterError(
            f"{what} name {name!r}: expected letters, digits, '.', '_' and '-', starting with a letter or digit, "
            "at most 64"
        )


def create_campaign(home: Path, plan: CampaignPlan, folder: Path | None = None) -> Campaign:
    """Make the campaign, or open it where it exists with the same plan.

    Raises StateError where the name or the folder belongs to a campaign with another plan, naming what differs.
    """
    index = home / "campaigns" / plan.name
    target = folder.absolute() if folder else index
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with (home / "campaigns.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # drivers that share a search are started at the same time
            _make(index, target, plan, folder is not None)
    except OSError as error:
        raise DataError(f"{target}: cannot be created ({error.strerror}); give a writable place") from error
    return _campaign(target, plan)


def _make(index: Path, target: Path, plan: CampaignPlan, placed: bool) -> None:
    """Make the campaign in `target`, where it does not exist; `placed`: the user chose that place."""
    existing = _read_plan(target) or _read_plan(index)
    if existing is not None:
        different = _differences(existing, plan)
        if different:
            raise StateError(f"campaign {plan.name} in {target} exists with {different}; use another name and folder")
    if index.is_symlink() and placed and index.readlink() != target:
        raise StateError(f"campaign {plan.name} lives in {index.resolve()}, not in {target}; use another name")
    target.mkdir(parents=True, exist_ok=True)
    if target != index and not index.is_symlink():
        index.symlink_to(target)
    if existing is None:
        CampaignIdentity(uid=secrets.token_hex(4), created=time.time()).save(target / IDENTITY_FILE)
        plan.save(target / PLAN_FILE)


def open_campaign(home: Path, name: str) -> Campaign:
    """The campaign of that name.  Raises StateError, with the known names, where there is none."""
    check_name(name, "campaign")
    folder = home / "campaigns" / name
    plan = _read_plan(folder)
    if plan is None:
        known = ", ".join(list_campaigns(home)) or "none"
        raise StateError(f"campaign {name!r}: no such campaign in {home}; there are: {known}")
    return _campaign(folder.resolve(), plan)


def list_campaigns(home: Path) -> list[str]:
    """Names of the campaigns known in this home."""
    return sorted(path.parent.name for path in (home / "campaigns").glob(f"*/{PLAN_FILE}"))


def _campaign(folder: Path, plan: CampaignPlan) -> Campaign:
    return Campaign(plan.name, folder, plan, CampaignIdentity.load(folder / IDENTITY_FILE).uid)


def _read_plan(folder: Path) -> CampaignPlan | None:
    file = folder / PLAN_FILE
    return CampaignPlan.load(file) if file.is_file() else None


def _differences(old: CampaignPlan, new: CampaignPlan) -> str:
    a, b = old.to_dict(), new.to_dict()
    return ", ".join(f"{key} {a[key]!r} (now {b[key]!r})" for key in a if a[key] != b[key])
