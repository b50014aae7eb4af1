"""Growing a block of tissue on disk, block of voxels by block of voxels, in three passes.

1. Cells: which neurite (vessel, resin) holds each voxel.
2. Objects: the connected components, joined over all blocks; places for synapses and mitochondria.
3. Picture: image, labels, masks, clefts, vesicle clouds.

A pass over one block depends on the plan and on what the passes before have left, and is recorded when it is done: a
run that was killed goes on, and ends with the same bytes.  Memory is that of one block, besides the sparse plan.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from apps.core.boxes import Box, Triple, tiles
from apps.core.files import file_in_the_making, write_atomically
from apps.core.parameters import Parameters
from apps.core.progress import Reporter
from apps.core.volumes import Volume, VoxelSize, create_shared_volume, open_volume, open_volume_to_write
from apps.phantom.design import PhantomDesign
from apps.phantom.fields import Floats, PlacedNoise, stream
from apps.phantom.objects import Findings, Objects, analyse, limited_depth, load_face, merge
from apps.phantom.paths import Path as CentreLine
from apps.phantom.picture import Contents, draw_contents, paint
from apps.phantom.rendering import Capsule, draw_mitochondria, expose
from apps.phantom.skeletons import cut_skeletons
from apps.phantom.synapses import Synapses, thin_out
from apps.phantom.tissue import Cells, Tissue, fill_cells, plan_tissue

_CHUNK = 64  # voxels on a side of a chunk
_BLOCK_CHUNKS = 3  # chunks on a side (y, x) of a block
_DEPTH = 16.0  # voxels beyond which nobody asks how deep a voxel lies in its neurite

VOLUMES: dict[str, DTypeLike] = {
    "image.zarr": np.uint8,
    "labels.zarr": np.uint32,
    "masks.zarr": np.uint8,
    "clefts.zarr": np.uint32,
    "vesicles.zarr": np.uint32,
}
SYNAPSES, SKELETONS = "synapses.csv", "skeletons.npz"
_SUMMARY = "grown.json"


@dataclass(frozen=True)
class Layout:
    """How a phantom is divided.

    Attributes:
        shape: of the volumes: sections, y, x.
        thickness: planes of tissue in one section.
        block: sections, y, x of a block; whole chunks.
    """

    shape: Triple
    thickness: int
    block: Triple

    @classmethod
    def of(cls, shape: Triple, thickness: int) -> Layout:
        side = _BLOCK_CHUNKS * _CHUNK
        return cls(shape, thickness, (max(1, _CHUNK // thickness), side, side))

    @property
    def chunks(self) -> Triple:
        """Chunks of the volumes; a block holds whole ones."""
        return self.block[0], min(_CHUNK, self.block[1]), min(_CHUNK, self.block[2])

    @property
    def grid(self) -> Triple:
        """Blocks along z, y and x."""
        z, y, x = (-(-n // b) for n, b in zip(self.shape, self.block, strict=True))
        return z, y, x

    @property
    def blocks(self) -> list[Box]:
        """All blocks, in sections, y, x."""
        return list(tiles(Box.of((0, 0, 0), self.shape), self.block))

    @property
    def sampled(self) -> slice:
        """The planes of tissue, counted from a section's first, that labels are taken from."""
        return slice(self.thickness // 2, None, self.thickness)

    def tissue(self, box: Box) -> Box:
        """The box of tissue that a box of sections shows."""
        return Box.of(_thicken(box.offset, self.thickness), _thicken(box.shape, self.thickness))

    def voxels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points [..., 3] of the tissue in voxels of the volumes, whose sections are averages of planes."""
        return (points - [(self.thickness - 1) / 2, 0, 0]) / [self.thickness, 1, 1]


def _thicken(of: Triple, by: int) -> Triple:
    return of[0] * by, of[1], of[2]


class Grown(Parameters, frozen=True, kw_only=True):
    """What was grown: objects in the labels, voxels with a label, synapses in the table."""

    objects: int
    labelled_voxels: int
    synapses: int


def grow_tissue(
    folder: Path, layout: Layout, seed: int, design: PhantomDesign, voxel_size_nm: VoxelSize, report: Reporter
) -> Grown:
    """Grow tissue into `folder`: the `VOLUMES`, `SYNAPSES` and `SKELETONS`; goes on where a run was killed.

    The folder is for this phantom alone, as what is found there is taken for its own.

    Raises DataError where no object grows, or the folder cannot be written.
    """
    summary = folder / _SUMMARY
    if summary.exists():
        return Grown.load(summary)
    work = _Work(folder, layout, plan_tissue(_thicken(layout.shape, layout.thickness), seed, design), voxel_size_nm)
    count = len(layout.blocks)
    for number in range(count):
        report(number, 3 * count, "growing neurites")
        work.fill(number)
    for number in range(count):
        report(count + number, 3 * count, "finding objects")
        work.analyse(number)
    merged = work.merge()
    for number in range(count):
        report(2 * count + number, 3 * count, "painting")
        work.paint(number, merged)
    labelled = sum(json.loads(work.record("painted", number).read_text()) for number in range(count))
    grown = Grown(objects=merged.objects.count, labelled_voxels=labelled, synapses=len(merged.contents.synapses))
    grown.save(summary)
    work.clear()
    return grown


@dataclass(frozen=True)
class _Merged:
    objects: Objects
    contents: Contents


class _Work:
    """The passes over one phantom, and the records of what they have done."""

    def __init__(self, folder: Path, layout: Layout, tissue: Tissue, voxel_size_nm: VoxelSize) -> None:
        self._folder, self._layout, self._plan = folder, layout, tissue
        self._blocks = layout.blocks
        # So far from a block, what is not in the window no longer matters to it: to the distance from the sheets, and
        # to the blur.
        self._most_depth = max(_DEPTH, 2 * tissue.design.membrane_thickness)
        self._margin = int(np.ceil(self._most_depth + 4 * tissue.design.blur)) + 1
        for kind in ("filled", "found", "painted"):
            (folder / kind).mkdir(exist_ok=True)
        passing: dict[str, DTypeLike] = {"cells.zarr": np.int32, "components.zarr": np.uint32}
        for name, dtype in passing.items():
            self._create(name, tissue.shape, dtype, _thicken(layout.chunks, layout.thickness), (1.0, 1.0, 1.0))
        for name, dtype in VOLUMES.items():
            self._create(name, layout.shape, dtype, layout.chunks, voxel_size_nm)

    def _create(self, name: str, shape: Triple, dtype: DTypeLike, chunks: Triple, size: VoxelSize) -> None:
        if not (self._folder / name).is_dir():
            create_shared_volume(self._folder / name, shape, dtype, size, chunks)

    def record(self, kind: str, number: int) -> Path:
        """The file that is there when a pass over a block is done."""
        return self._folder / kind / f"{number:06d}.{'npz' if kind == 'found' else 'json'}"

    def _open(self, name: str) -> Volume:
        return open_volume_to_write(self._folder / name)

    def _window(self, core: Box) -> Box:
        return core.grow((self._margin,) * 3).intersection(Box.of((0, 0, 0), self._plan.shape))

    def fill(self, number: int) -> None:
        """First pass."""
        if self.record("filled", number).exists():
            return
        core = self._layout.tissue(self._blocks[number])
        self._open("cells.zarr").write(core, fill_cells(self._plan, core))
        write_atomically(self.record("filled", number), b"true")

    def _geometry(self, core: Box) -> tuple[Box, Cells, Floats]:
        """Window around `core`, and its cells and depth; the cells of all blocks have been filled."""
        window = self._window(core)
        cells = cast(Cells, open_volume(str(self._folder / "cells.zarr")).read(window))
        return window, cells, limited_depth(cells, self._most_depth)

    def analyse(self, number: int) -> None:
        """Second pass."""
        if self.record("found", number).exists():
            return
        core = self._layout.tissue(self._blocks[number])
        window, cells, depth = self._geometry(core)
        components, findings = analyse(self._plan, core, window, cells, depth, self._layout.sampled)
        self._open("components.zarr").write(core, components)
        findings.save(self.record("found", number))

    def merge(self) -> _Merged:
        """Join what the second pass has found, and write the tables that follow from it."""
        tissue = self._plan
        findings = [Findings.load(self.record("found", number)) for number in range(len(self._blocks))]

        def face(block: int, which: int) -> NDArray[np.uint32]:
            return load_face(self.record("found", block), which)

        objects = merge(self._layout.grid, findings, face, tissue.design.smallest_object)
        points = sum(len(path.points) for path in [*tissue.filling, *tissue.thin])
        label, depth = np.zeros(points, np.uint32), np.zeros(points)
        for block, labels in zip(findings, objects.labels, strict=True):
            label[block.points] = labels[block.point_component]
            depth[block.points] = block.point_depth
        self._write_skeletons(label)
        synapses, partners = self._choose_synapses(Synapses.join([block.synapses for block in findings]), objects)
        self._write_synapses(synapses, partners)
        return _Merged(objects, draw_contents(tissue, _draw_mitochondria(tissue, depth), synapses))

    def _choose_synapses(self, found: Synapses, objects: Objects) -> tuple[Synapses, NDArray[np.uint32]]:
        """Synapses between two objects, none too close to another, and the labels [n, 2] before and after."""
        partners = np.array(
            [[self._label_at(point, objects) for point in pair] for pair in found.partners], np.uint32
        ).reshape(-1, 2)
        good = np.flatnonzero((partners > 0).all(axis=1) & (partners[:, 0] != partners[:, 1]))
        chosen = good[thin_out(found.take(good))]
        return found.take(chosen), partners[chosen]

    def _label_at(self, point: NDArray[np.float64], objects: Objects) -> int:
        z, y, x = (int(v) for v in np.rint(point))
        place = (z // self._layout.thickness, y, x)
        index = tuple(p // b for p, b in zip(place, self._layout.block, strict=True))
        block = int(np.ravel_multi_index(index, self._layout.grid))
        volume = open_volume(str(self._folder / "components.zarr"))
        return int(objects.labels[block][int(volume.read(Box.of((z, y, x), (1, 1, 1)))[0, 0, 0])])

    def _write_skeletons(self, label: NDArray[np.uint32]) -> None:
        skeletons = cut_skeletons([*self._plan.filling, *self._plan.thin], label)
        with file_in_the_making(self._folder / SKELETONS) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                nodes=self._layout.voxels(skeletons.nodes.astype(np.float64)).astype(np.float32),
                radius=skeletons.radius,
                label=skeletons.label,
                edges=skeletons.edges,
            )

    def _write_synapses(self, synapses: Synapses, partners: NDArray[np.uint32]) -> None:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        places = [f"{what}{axis}" for what in ("", "pre_", "post_", "direction_") for axis in "zyx"]
        table.writerow(["id", "pre", "post", *places, "diameter"])
        voxels = self._layout.voxels
        for number in range(len(synapses)):
            numbers = np.concatenate(
                [
                    voxels(synapses.centre[number]),
                    voxels(synapses.partners[number]).ravel(),
                    synapses.normal[number],
                    [2 * synapses.radius[number]],
                ]
            )
            table.writerow([number + 1, *partners[number].tolist(), *(f"{value:.3f}" for value in numbers)])
        write_atomically(self._folder / SYNAPSES, text.getvalue().encode())

    def paint(self, number: int, merged: _Merged) -> None:
        """Third pass."""
        if self.record("painted", number).exists():
            return
        tissue, layout, sections = self._plan, self._layout, self._blocks[number]
        core = layout.tissue(sections)
        window, cells, depth = self._geometry(core)
        labels = self._labels(window, merged.objects)
        # Objects that were dropped look like membrane.
        neurite = (depth >= tissue.design.membrane_thickness / 2) & (cells <= tissue.neurites)
        depth[neurite & (labels == 0)] = 0
        picture = paint(tissue, merged.contents, window, cells, depth)
        inner = core.slices(window.offset)
        image = picture.image[inner].reshape(sections.shape[0], layout.thickness, *sections.shape[1:]).mean(axis=1)
        found: dict[str, NDArray[np.generic]] = {
            "image.zarr": expose(PlacedNoise(tissue.seed, sections), image, tissue.design),
            "labels.zarr": labels[inner][layout.sampled],
            "masks.zarr": picture.masks[inner][layout.sampled],
            "clefts.zarr": picture.clefts[inner][layout.sampled],
            "vesicles.zarr": picture.clouds[inner][layout.sampled],
        }
        for name, array in found.items():
            self._open(name).write(sections, array)
        labelled = int(np.count_nonzero(found["labels.zarr"]))
        write_atomically(self.record("painted", number), json.dumps(labelled).encode())

    def _labels(self, window: Box, objects: Objects) -> NDArray[np.uint32]:
        """Final labels of a window of tissue, which may lie in several blocks."""
        volume = open_volume(str(self._folder / "components.zarr"))
        labels = np.zeros(window.shape, np.uint32)
        for number, block in enumerate(self._blocks):
            part = self._layout.tissue(block).intersection(window)
            if not part.empty:
                labels[part.slices(window.offset)] = objects.labels[number][volume.read(part)]
        return labels

    def clear(self) -> None:
        """Remove what only the passes needed."""
        for name in ("cells.zarr", "components.zarr", "filled", "found", "painted"):
            shutil.rmtree(self._folder / name)


def _draw_mitochondria(tissue: Tissue, depth: NDArray[np.float64]) -> list[Capsule]:
    """Mitochondria of the whole block; `depth` is that of all centre line points in their own neurites."""
    first = dict(
        zip(map(id, tissue.filling), np.cumsum([0, *(len(path.points) for path in tissue.filling)]), strict=False)
    )

    def room(path: CentreLine, points: slice) -> NDArray[np.float64]:
        start = first[id(path)]
        return depth[start : start + len(path.points)][points]

    wanted = round(tissue.design.mitochondria * float(np.prod(tissue.shape)) / 1e6)
    return draw_mitochondria(stream(tissue.seed, "mitochondria"), wanted, tissue.filling, room)
