"""Which of a campaign's stores are shown together: the furthest segmentation, and what is of it.

What jobs have recorded decides: the image that the segmentation was made of, meshes, skeletons and synapses of this
very segmentation, labels of this image.  Only where nothing is recorded do shape and voxel size, and it is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, EnsembleError
from ensemble.viewing.lineage import BETWEEN, Lineage, Record, place, same
from ensemble.viewing.stores import open_shown

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
COPYING = "precomputed"  # whose result is the same store, for other tools
STAGES = frozenset(stage for places in PLACES.values() for stage, _, _ in places) | frozenset((*BETWEEN, COPYING))
MOST_NAMED = 6


@dataclass(frozen=True)
class Choice:
    """What is shown.

    Attributes:
        stores: fields of Stores; those that the user gave are not among them.
        remarks: what a person should know of the choice, a sentence each.
    """

    stores: dict[str, Any]
    remarks: tuple[str, ...] = ()


def choose(records: Iterable[Record], given: Mapping[str, Any] | None = None) -> Choice:
    """The stores that go together, of those that are there.

    `given`: layer -> store that the user names; the others are chosen to go with it.  Raises DataError, which lists
    them, where several images could be the segmentation's and nothing recorded tells which.
    """
    return _Chooser(Lineage(records), dict(given or {})).choice()


class _Chooser:
    def __init__(self, lineage: Lineage, given: dict[str, Any]) -> None:
        self._lineage, self._given = lineage, given
        self._found: dict[str, Any] = {}
        self._remarks: list[str] = []

    def choice(self) -> Choice:
        if "segmentation" not in self._given:
            self._take("segmentation", self._segmentation())
        segmentation = self._shown("segmentation")
        if segmentation is not None and "offset" not in self._given:
            self._found["offset"] = list(self._lineage.offset_of(self._original(segmentation)))
        if "image" not in self._given:
            self._take("image", self._only_image() if segmentation is None else self._image_of(segmentation))
        for layer in ("labels", "meshes", "skeletons", "synapses"):
            if layer not in self._given:
                self._take(layer, self._belonging(layer))
        return Choice(self._found, tuple(self._remarks))

    def _shown(self, layer: str) -> Any:
        return self._given.get(layer, self._found.get(layer))

    def _take(self, layer: str, store: str | None) -> None:
        if store is not None:
            self._found[layer] = store

    def _segmentation(self) -> str | None:
        """The newest of the furthest stage that is of the image, where one is given; what else there is, is said."""
        stores = _distinct(store for _, store in self._candidates("segmentation"))
        image = self._given.get("image")
        if image is not None:
            stores = self._of_image(stores, str(image))
        if not stores:
            return None
        bases = {place(base) for store in stores if (base := self._lineage.base_of(store)) is not None}
        others = [store for store in stores[1:] if place(store) not in bases]
        if others:
            self._remarks.append(
                f"segmentation {self._named(stores[0])} is shown; there are also {_listed(map(self._named, others))}: "
                "choose with --segmentation"
            )
        return stores[0]

    def _of_image(self, stores: list[str], image: str) -> list[str]:
        """Those of this image; where none is recorded as of it, the one that lies in it, whatever it is recorded of."""
        known = {store: self._lineage.image_of(store) for store in stores}
        recorded = [store for store, of in known.items() if of is not None and self._equal(of, image)]
        if recorded or not stores:
            return recorded
        fits = [store for store in stores if self._fits(image, store)]
        fits = [store for store in fits if known[store] is None] or fits
        bases = {place(base) for store in fits if (base := self._lineage.base_of(store)) is not None}
        fits = [store for store in fits if place(store) not in bases]
        if len(fits) > 1:
            raise DataError(_ambiguous("segmentation", f"image {image}", fits))
        if fits:
            self._remarks.append(_by_shape(f"segmentation {self._named(fits[0])}", f"image {image}"))
        else:
            self._remarks.append(
                f"no segmentation is shown: none is of the image {image}, but of {_listed(_of(known))}"
            )
        return fits

    def _named(self, segmentation: str) -> str:
        image = self._lineage.image_of(segmentation)
        return f"{segmentation} (of {image})" if image else segmentation

    def _image_of(self, segmentation: str) -> str | None:
        recorded = self._lineage.image_of(self._original(segmentation))
        stores = _distinct(store for _, store in self._candidates("image"))
        if recorded is not None:
            found = next(
                (store for store in [recorded, *stores] if _there(store) and self._equal(recorded, store)), None
            )
            if found is None:
                self._remarks.append(
                    f"no image is shown: that of the segmentation, {recorded}, is not there or is no folder that the "
                    "viewer can read; give another copy with --image"
                )
            return found
        fits = [store for store in stores if self._fits(store, segmentation)]
        if len(fits) > 1:
            raise DataError(_ambiguous("image", f"segmentation {segmentation}", fits))
        if fits:
            self._remarks.append(_by_shape(f"image {fits[0]}", f"segmentation {segmentation}"))
        elif stores:
            self._remarks.append(f"no image is shown: none that is there fits the segmentation {segmentation}")
        return fits[0] if fits else None

    def _only_image(self) -> str | None:
        """Where there is no segmentation: the newest of the furthest stage."""
        records = list(self._candidates("image"))
        if not records:
            return None
        first, store = records[0]
        others = [
            other for other in _distinct(s for r, s in records if r.stage == first.stage) if not same(other, store)
        ]
        if others:
            self._remarks.append(f"image {store} is shown; there are also {_listed(others)}: choose with --image")
        return store

    def _belonging(self, layer: str) -> str | None:
        stores = list(self._candidates(layer))
        found = next((store for record, store in stores if self._belongs(layer, record)), None)
        if found is None and stores and layer != "labels":  # what was learnt from has labels, and nothing else has
            why = "of another segmentation" if self._shown("segmentation") else "of a segmentation that is not shown"
            self._remarks.append(f"no {layer} are shown: those that there are, are {why}")
        return found

    def _belongs(self, layer: str, record: Record) -> bool:
        """Whether the record's store of a layer goes with the image and the segmentation that are shown."""
        segmentation = self._shown("segmentation")
        segmentation = self._original(segmentation) if segmentation else None
        image = self._shown("image") or (self._lineage.image_of(segmentation) if segmentation else None)
        if layer == "labels":
            of = record.result.get("image") or record.parameters.get("image")
            if record.stage == "evaluation" and same(record.parameters.get("segmentation"), segmentation):
                moved = record.parameters.get("segmentation_offset", (0, 0, 0))
                return tuple(moved) == self._offset()  # else the labels begin elsewhere than the image
        elif layer == "synapses":
            partners, of = self._lineage.partners_in(record)
            if partners is not None and segmentation is not None:
                return same(partners, segmentation)
        else:
            return same(record.parameters.get("segmentation"), segmentation)
        if image is None:
            return segmentation is None
        return isinstance(of, str) and self._equal(of, image)

    def _offset(self) -> Triple:
        z, y, x = self._shown("offset") or (0, 0, 0)
        return z, y, x

    def _equal(self, image: str, other: str) -> bool:
        """Whether two names are of the same image: of one store, of what the stage `ingest` made of it, whole, or of
        precomputed copies of these."""
        image, other = self._original(image), self._original(other)
        pairs = (
            (record.parameters.get("image"), record.result.get("image"))
            for record in self._lineage.newest
            if record.stage == "ingest" and not record.parameters.get("box")
        )
        return same(image, other) or any(
            {place(image), place(other)} == {place(a), place(b)} for a, b in pairs if a and b
        )

    def _original(self, store: str) -> str:
        """The volume that a store is recorded as the precomputed copy of; the store itself where it is none."""
        volumes = (
            record.parameters.get("volume")
            for record in self._lineage.newest
            if record.stage == COPYING and same(record.result.get("precomputed"), store)
        )
        return next((volume for volume in volumes if isinstance(volume, str)), store)

    def _candidates(self, layer: str) -> Iterator[tuple[Record, str]]:
        for stage, part, field in PLACES[layer]:
            for record in self._lineage.newest:
                store = getattr(record, part).get(field) if record.stage == stage else None
                if isinstance(store, str) and _there(store):
                    yield record, store

    def _fits(self, image: str, segmentation: str) -> bool:
        """Whether the segmentation lies in the image, with voxels as long as the image's."""
        try:
            ground, labels = open_shown(image, "image"), open_shown(segmentation, "segmentation")
        except EnsembleError:
            return False
        offset = self._shown("offset") or self._lineage.offset_of(segmentation)
        inside = Box.of((0, 0, 0), ground.shape).contains(Box.of(offset, labels.shape))
        return inside and ground.voxel_size_nm == labels.voxel_size_nm


def _there(store: str) -> bool:
    return Path(store).exists()


def _distinct(stores: Iterable[str]) -> list[str]:
    """Each store once, in their order."""
    found: dict[str, str] = {}
    for store in stores:
        found.setdefault(place(store), store)
    return list(found.values())


def _of(known: Mapping[str, str | None]) -> list[str]:
    return [of or "one that nothing tells" for of in dict.fromkeys(known.values())]


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


def _by_shape(what: str, of: str) -> str:
    return f"nothing recorded tells whether {what} belongs to {of}; it is shown as shape and voxel size agree"


def _ambiguous(layer: str, of: str, fits: list[str]) -> str:
    return (
        f"nothing recorded tells which {layer} belongs to the {of}, and by shape and voxel size several can: "
        f"{_listed(fits)}; choose one with --{layer}"
    )
