"""The sections to align: which there are, which of them can be used, and what is in them (by digest)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from apps.core.boxes import Box
from apps.core.errors import DataError, UserError
from apps.core.files import write_atomically
from apps.core.parameters import Result, json_hash
from apps.core.volumes import Volume, open_volume

_ROWS = 1024  # read at a time

FaultKind = Literal["missing", "held", "unreadable", "damaged", "blank", "repeated", "unmatched", "apart"]


class Fault(Result, frozen=True, kw_only=True):
    """Something wrong with a section that alignment could work around."""

    section: Annotated[int, Meta(description="its number")]
    kind: Annotated[FaultKind, Meta(description="what it is")]
    message: Annotated[str, Meta(description="what was found, and what was done about it")]


class Digest(Result, frozen=True, kw_only=True):
    """What a section holds."""

    fingerprint: Annotated[str, Meta(description="of its files' names, sizes and times: whether to look again")]
    digest: Annotated[str, Meta(description="of its shape and pixels")]
    blank: Annotated[bool, Meta(description="whether its tissue has no contrast, or there is none")]


@dataclass
class Stack:
    """Sections `first` to `last` of a montage.

    Attributes:
        paths: of the volumes (1, H, W) that there are; they are opened when they are asked for.
        damaged: those that the user has named as such.
        faults: of the sections that cannot be used, by number.
        digests: folder in which digests are kept.
    """

    first: int
    last: int
    paths: dict[int, Path]
    damaged: frozenset[int]
    digests: Path
    faults: dict[int, Fault] = field(default_factory=dict)
    _opened: dict[int, Volume] = field(default_factory=dict)
    _known: dict[int, Digest] = field(default_factory=dict)

    @property
    def numbers(self) -> range:
        return range(self.first, self.last + 1)

    def image(self, section: int) -> Volume:
        """The section's volume.  Raises DataError where it is no readable image."""
        if section not in self._opened:
            self._opened[section] = _open(self.paths[section])
        return self._opened[section]

    def usable(self, section: int) -> bool:
        """Whether it can be matched; otherwise `faults` says why not."""
        if section in self.faults:
            return False
        try:
            digest = self.digest(section)
        except DataError as error:
            self._fault(section, "unreadable", f"{error}; it is left out")
            return False
        if digest.blank:
            self._fault(section, "blank", "its image is empty or of one grey level; its neighbours were matched")
            return False
        if section in self.damaged:
            self._fault(section, "damaged", "named as damaged; its neighbours were matched, and place it")
            return False
        return True

    def digest(self, section: int) -> Digest:
        """What the section holds; read only where its files have changed.  Raises DataError where they are damaged."""
        if section in self._known:
            return self._known[section]
        volume = self.image(section)
        file, fingerprint = self.digests / f"{section:05d}.json", _fingerprint(Path(volume.name))
        found = _load_digest(file)
        if found is None or found.fingerprint != fingerprint:
            found = _look(volume, fingerprint)
            self.digests.mkdir(parents=True, exist_ok=True)
            write_atomically(file, msgspec.json.encode(found))
        self._known[section] = found
        return found

    def has_image(self, section: int) -> bool:
        """Whether there is an image to render, be it damaged."""
        return self.usable(section) or self.faults[section].kind == "damaged"

    def earlier(self, section: int, most: int) -> list[int]:
        """The usable sections before `section`, nearest first, at most so many."""
        found: list[int] = []
        for candidate in range(section - 1, self.first - 1, -1):
            if len(found) == most:
                break
            if self.usable(candidate):
                found.append(candidate)
        return found

    def shape(self) -> tuple[int, int]:
        """Extent (H, W) of the first usable image: what the rigid motions turn about the middle of.

        Raises DataError where no section is usable.
        """
        for section in self.numbers:
            if self.usable(section):
                _, height, width = self.image(section).shape
                return height, width
        raise DataError(
            f"{self.digests.parent}: no section can be aligned; the first: {self.faults[self.first].message}"
        )

    def _fault(self, section: int, kind: FaultKind, message: str) -> None:
        self.faults[section] = Fault(section=section, kind=kind, message=message)


def open_stack(
    montage: str,
    output: str,
    first: int | None,
    last: int | None,
    damaged: tuple[int, ...],
    held: tuple[int, ...] = (),
) -> Stack:
    """Look at the section volumes `<montage>/sections/NNNNN.zarr`.  Those in `held` are as if they were not there.

    Raises DataError where there is none; one that is missing or cannot be read is a fault of its own.
    """
    folder = Path(montage) / "sections"
    names = sorted(path for path in folder.glob("*.zarr") if path.stem.isdigit()) if folder.is_dir() else []
    paths = {int(path.stem): path for path in names}
    wanted = [n for n in paths if (first is None or n >= first) and (last is None or n <= last)]
    if not wanted:
        raise DataError(f"{folder}: holds no section NNNNN.zarr that is asked for; expected those that montage wrote")
    stack = Stack(
        min(wanted) if first is None else first,
        max(wanted) if last is None else last,
        paths,
        frozenset(damaged),
        Path(output) / "digests",
    )
    for section in stack.numbers:
        if section not in paths:
            stack._fault(section, "missing", f"there is no {folder / f'{section:05d}.zarr'}")
        elif section in held:
            stack._fault(section, "held", "held back by a gate; neither matched nor placed")
    return stack


def _open(path: Path) -> Volume:
    volume = open_volume(str(path))
    if volume.dtype != np.uint8 or volume.shape[0] != 1:
        raise DataError(f"{path}: has shape {volume.shape} and dtype {volume.dtype}; expected (1, H, W) of uint8")
    return volume


def _fingerprint(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return json_hash([[str(path.relative_to(folder)), (s := path.stat()).st_size, s.st_mtime_ns] for path in files])


def _load_digest(file: Path) -> Digest | None:
    try:
        return Digest.from_json(file.read_bytes())
    except (OSError, UserError):
        return None


def _look(volume: Volume, fingerprint: str) -> Digest:
    digest = hashlib.sha256(f"{volume.shape} {volume.voxel_size_nm}".encode())
    _, height, width = volume.shape
    low, high = 256, 0
    for y in range(0, height, _ROWS):
        pixels = volume.read(Box.between((0, y, 0), (1, min(y + _ROWS, height), width)))
        digest.update(np.ascontiguousarray(pixels).tobytes())
        tissue = pixels[pixels > 0]
        if len(tissue):
            low, high = min(low, int(tissue.min())), max(high, int(tissue.max()))
    return Digest(fingerprint=fingerprint, digest=digest.hexdigest()[:16], blank=high <= low)
