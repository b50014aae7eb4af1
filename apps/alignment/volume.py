"""The aligned volume: its canvas, the groups of chunks that jobs render, and what each of them depends on."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.alignment.rendering import Source, render_chunks
from apps.alignment.scoring import PairScore, SectionScore, SectionState, Shown
from apps.alignment.settings import RenderSettings
from apps.alignment.solving import Solution
from apps.alignment.stack import Fault, Stack
from apps.alignment.storage import load_mesh, mesh_path
from apps.core.boxes import Box, Triple, tiles
from apps.core.errors import DataError, StateError, UserError
from apps.core.parameters import Result, json_hash, write_json
from apps.core.stage import code_version
from apps.core.volumes import Volume, VoxelSize, create_shared_volume, open_volume, open_volume_to_write

_ROUND = 64  # pixels that the canvas is rounded to, so that a section that is added later seldom changes it


class Layout(Result, frozen=True, kw_only=True):
    """`solution.json`: what rendering needs to know of the solution besides the meshes."""

    identity: Annotated[str, Meta(description="of all meshes, states and the canvas")]
    first: Annotated[int, Meta(description="section of the plane 0")]
    origin: Annotated[tuple[int, int], Meta(description="(y, x) of the volume's first pixel in the aligned frame")]
    shape: Annotated[Triple, Meta(description="of the volume, zyx")]
    voxel_size_nm: Annotated[VoxelSize, Meta(description="zyx")]
    sections: Annotated[tuple[SectionScore, ...], Meta(description="in order, without correlations")]
    contents: Annotated[tuple[str | None, ...], Meta(description="hash of the mesh and image that each plane shows")]
    pairs: Annotated[tuple[PairScore, ...], Meta(description="all that were tried")]
    faults: Annotated[tuple[Fault, ...], Meta(description="what was wrong")]


@dataclass(frozen=True)
class Paths:
    """Where things are under the output folder."""

    output: Path

    @property
    def volume(self) -> Path:
        return self.output / "aligned.zarr"

    @property
    def solution(self) -> Path:
        return self.output / "solution.json"

    @property
    def report(self) -> Path:
        return self.output / "alignment.json"

    def rendered(self, group: int) -> Path:
        return self.output / "rendered" / f"{group:06d}.json"


def describe(stack: Stack, solution: Solution, settings: RenderSettings, output: Path) -> Layout:
    """Put together what is known once the meshes are there: canvas, what each plane shows, strain, faults."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    sections, contents = [], []
    for number in stack.numbers:
        shown, source = _shown(stack, solution, settings, number)
        strain: tuple[float, float] | None = None
        folds = None
        if number in solution.contents:
            stored = load_mesh(mesh_path(output, number))
            if stored is None:
                raise StateError(f"{mesh_path(output, number)}: has gone; solve again")
            strain, folds = stored.mesh.strain(), stored.mesh.folds()
            if shown == "own":
                edge = stored.mesh(np.minimum(stored.mesh.vertices, np.array(stack.image(number).shape[1:]) - 1))
                low, high = np.minimum(low, edge.min(axis=(0, 1))), np.maximum(high, edge.max(axis=(0, 1)))
        mine = [pair for pair in solution.pairs if pair.accepted and number in (pair.a, pair.b)]
        squares = [pair.residual**2 for pair in mine if pair.residual is not None]
        sections.append(
            SectionScore(
                section=number,
                plane=number - stack.first,
                state=_state(solution, number),
                shown=shown,
                shown_section=source,
                matched_with=tuple(sorted({pair.a + pair.b - number for pair in mine})),
                residual=float(np.sqrt(np.mean(squares))) if squares else None,
                misfit=solution.misfits.get(number),
                strain=strain[0] if strain else None,
                largest_strain=strain[1] if strain else None,
                folds=folds,
            )
        )
        contents.append(None if source is None else _content(solution.contents[source], stack, source))
    if not np.isfinite(low).all():
        raise DataError(f"{output}: no section has an image to show; see the faults: {_first_fault(stack)}")
    start = np.floor(low / _ROUND).astype(int) * _ROUND
    extent = np.ceil((high + 1 - start) / _ROUND).astype(int) * _ROUND
    origin = (int(start[0]), int(start[1]))
    shape = (len(stack.numbers), int(extent[0]), int(extent[1]))
    size = _voxel_size(stack)
    return Layout(
        identity=json_hash([origin, shape, size, contents, [section.to_dict() for section in sections]]),
        first=stack.first,
        origin=origin,
        shape=shape,
        voxel_size_nm=size,
        sections=tuple(sections),
        contents=tuple(contents),
        pairs=tuple(PairScore(**vars(pair)) for pair in solution.pairs),
        faults=_faults(stack, solution),
    )


def prepare_volume(layout: Layout, settings: RenderSettings, paths: Paths) -> None:
    """Have an aligned volume of the right shape to render into; one that only gets longer keeps what it holds.

    Nobody else may use the volume meanwhile.
    """
    if paths.volume.exists():
        volume = open_volume_to_write(paths.volume)
        old = _layout_before(paths.solution)
        same = old is not None and (old.origin, old.first, old.voxel_size_nm) == (
            layout.origin,
            layout.first,
            layout.voxel_size_nm,
        )
        fits = volume.shape[1:] == layout.shape[1:] and volume.shape[0] <= layout.shape[0]
        if same and fits and tuple(volume.array.chunks) == settings.chunks:
            if volume.shape != layout.shape:
                volume.array.resize(layout.shape)
            write_json(paths.solution, layout.to_dict())
            return
    shutil.rmtree(paths.output / "rendered", ignore_errors=True)
    create_shared_volume(paths.volume, layout.shape, np.uint8, layout.voxel_size_nm, settings.chunks)
    write_json(paths.solution, layout.to_dict())


def plan_groups(layout: Layout, settings: RenderSettings) -> list[Box]:
    """The boxes, of whole chunks, that rendering jobs own; group i is the i-th."""
    return list(tiles(Box.of((0, 0, 0), layout.shape), settings.group_shape))


def group_identities(layout: Layout, settings: RenderSettings) -> list[str]:
    """What each group's voxels depend on: one that is rendered with its identity is not rendered again."""
    version = code_version()
    return [_group_identity(layout, settings, box, version) for box in plan_groups(layout, settings)]


def plane_identities(layout: Layout, settings: RenderSettings) -> list[str]:
    """What each plane's pixels depend on: planes of one identity are the same, in this volume or in an earlier one."""
    canvas = [settings.interpolation, settings.chunks[1:], layout.origin, layout.shape[1:], code_version()]
    return [json_hash([canvas, content]) for content in layout.contents]


def _group_identity(layout: Layout, settings: RenderSettings, box: Box, version: str) -> str:
    contents = layout.contents[box.offset[0] : box.end[0]]
    return json_hash([settings.interpolation, settings.chunks, layout.origin, box.to_dict(), contents, version])


def render_group(stack: Stack, layout: Layout, settings: RenderSettings, number: int, paths: Paths) -> bool:
    """Render one group, where that has not been done; returns whether it was.

    Raises StateError before `solve`, and where a mesh or an image is another than was solved.
    """
    box = plan_groups(layout, settings)[number]
    identity = _group_identity(layout, settings, box, code_version())
    marker = paths.rendered(number)
    if _identity_of(marker) == identity:
        return False
    marker.unlink(missing_ok=True)  # from here on until the end the chunks are neither old nor new
    volume = open_volume_to_write(paths.volume)
    for part in tiles(box, (settings.chunks[0], *box.shape[1:])):
        volume.write(part, _render(stack, layout, settings, part, paths))
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"identity": identity})
    return True


def open_aligned(layout: Layout, settings: RenderSettings, paths: Paths) -> Volume:
    """The volume, once every group is rendered from this layout.  Raises StateError that names those that are not."""
    wanted = group_identities(layout, settings)
    left = [number for number, identity in enumerate(wanted) if _identity_of(paths.rendered(number)) != identity]
    if left:
        raise StateError(f'{paths.volume}: groups {left} are not rendered; run the action "render" for them first')
    return open_volume(str(paths.volume))


def _render(stack: Stack, layout: Layout, settings: RenderSettings, box: Box, paths: Paths) -> NDArray[np.uint8]:
    data = np.zeros(box.shape, np.uint8)
    chunk = (1, *settings.chunks[1:])
    for plane in range(box.shape[0]):
        z = box.offset[0] + plane
        shown = layout.sections[z].shown_section
        if shown is None:
            continue
        stored = load_mesh(mesh_path(paths.output, shown))
        if stored is None:
            raise StateError(f"{mesh_path(paths.output, shown)}: has gone; solve again")
        if not stack.has_image(shown) or layout.contents[z] != _content(stored.content, stack, shown):
            raise StateError(f"section {shown}: its mesh or image is not the one that was solved; solve again")
        source = Source(stack.image(shown), stored.mesh)
        flat = Box.of((0, *box.offset[1:]), (1, *box.shape[1:]))
        parts = list(tiles(flat, chunk))
        (top, left), corners = layout.origin, [part.offset[1:] for part in parts]
        chunks = [((y + top, x + left), part.shape[1:]) for (y, x), part in zip(corners, parts, strict=True)]
        for part, pixels in zip(parts, render_chunks(source, chunks, settings.interpolation), strict=True):
            _, rows, columns = part.slices(flat.offset)
            data[plane, rows, columns] = pixels
    return data


def _content(mesh: str, stack: Stack, section: int) -> str:
    """Of a section's mesh (its content) and image."""
    return json_hash([mesh, stack.digest(section).digest])


def _layout_before(file: Path) -> Layout | None:
    """What was solved before; None where there is nothing, or nothing of this form."""
    try:
        return Layout.load(file)
    except UserError:
        return None


def _identity_of(marker: Path) -> str | None:
    try:
        return str(json.loads(marker.read_text())["identity"])
    except (OSError, ValueError, KeyError):
        return None


def _state(solution: Solution, number: int) -> SectionState:
    if number in solution.aligned:
        return "aligned"
    return "placed" if number in solution.contents else "missing"


def _shown(stack: Stack, solution: Solution, settings: RenderSettings, number: int) -> tuple[Shown, int | None]:
    if number in solution.aligned:
        return "own", number
    rule = settings.damaged if number in solution.contents else settings.missing
    if rule == "rigid":
        return "own", number
    nearest = min(solution.aligned, key=lambda n: (abs(n - number), n), default=None)
    return ("copy", nearest) if rule == "copy" and nearest is not None else ("black", None)


def _faults(stack: Stack, solution: Solution) -> tuple[Fault, ...]:
    found = dict(stack.faults)
    for number in solution.contents:
        if number not in solution.aligned and number not in found:
            message = "no other section matches it; it lies where its neighbours put it"
            found[number] = Fault(section=number, kind="unmatched", message=message)
    faults = list(found.values())
    for number in solution.apart:
        message = "no match connects it, and what follows, with the sections before; they are held together loosely"
        faults.append(Fault(section=number, kind="apart", message=message))
    usable = [number for number in stack.numbers if number in solution.contents]
    for before, number in itertools.pairwise(usable):
        if stack.digest(before).digest == stack.digest(number).digest:
            message = f"has the same pixels as section {before}; both are shown"
            faults.append(Fault(section=number, kind="repeated", message=message))
    return tuple(sorted(faults, key=lambda fault: (fault.section, fault.kind)))


def _voxel_size(stack: Stack) -> VoxelSize:
    """That of the first image; a montage writes all sections with one."""
    size = next(stack.image(number).voxel_size_nm for number in stack.numbers if stack.has_image(number))
    return size or (1.0, 1.0, 1.0)


def _first_fault(stack: Stack) -> str:
    return next((fault.message for fault in stack.faults.values()), "none")
