"""How good the alignment is, without ground truth: how alike neighbouring planes are, and how far meshes are bent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.alignment.images import shrink
from apps.alignment.stack import Fault
from apps.core.boxes import Box
from apps.core.parameters import Result
from apps.core.progress import Reporter
from apps.core.volumes import Volume

_POOL = 4  # pixels a side that are averaged before planes are compared: noise is no misalignment
_ROWS = 1024

SectionState = Literal["aligned", "placed", "missing"]
Shown = Literal["own", "copy", "black"]


class SectionScore(Result, frozen=True, kw_only=True):
    """One section of the aligned volume."""

    section: Annotated[int, Meta(description="its number")]
    plane: Annotated[int, Meta(ge=0, description="its z in the aligned volume")]
    state: Annotated[
        SectionState,
        Meta(description="aligned: by matches; placed: rigidly, where its neighbours put it; missing: without image"),
    ]
    shown: Annotated[Shown, Meta(description="its own image, a copy of another one, or nothing")]
    shown_section: Annotated[int | None, Meta(description="the section whose image the plane shows")]
    matched_with: Annotated[tuple[int, ...], Meta(description="sections with which it has matches")]
    residual: Annotated[float | None, Meta(description="root mean square distance of matched points, pixels")]
    strain: Annotated[float | None, Meta(description="root mean square of the mesh cells' principal stretch less 1")]
    largest_strain: Annotated[float | None, Meta(description="the largest of them")]
    folds: Annotated[int | None, Meta(description="cells of the mesh that are turned over")]
    correlation_previous: Annotated[
        float | None, Meta(description="of its pixels with those of the previous plane that shows its own image")
    ] = None
    correlation_next: Annotated[float | None, Meta(description="the same with the next one")] = None


class PairScore(Result, frozen=True, kw_only=True):
    """One pair of sections that was tried."""

    a: Annotated[int, Meta(description="the earlier section")]
    b: Annotated[int, Meta(description="the later section")]
    accepted: Annotated[bool, Meta(description="whether enough of it matched")]
    matches: Annotated[int, Meta(ge=0, description="points matched")]
    matched: Annotated[float, Meta(description="confidence: share of the blocks with tissue that matched")]
    correlation: Annotated[float, Meta(description="confidence: median over the blocks that matched")]
    coarse_correlation: Annotated[float, Meta(description="of the whole sections at a small scale")]
    residual: Annotated[float | None, Meta(description="root mean square distance of its points, pixels")]


class AlignmentReport(Result, frozen=True, kw_only=True):
    """What is beside the aligned volume: scores of every section, all pairs, all faults."""

    identity: Annotated[str, Meta(description="of the solution and the rendering")]
    origin: Annotated[tuple[int, int], Meta(description="(y, x) of the volume's first pixel in the aligned frame")]
    shape: Annotated[tuple[int, int, int], Meta(description="of the volume, zyx")]
    sections: Annotated[tuple[SectionScore, ...], Meta(description="in order")]
    pairs: Annotated[tuple[PairScore, ...], Meta(description="in order of the later section")]
    faults: Annotated[tuple[Fault, ...], Meta(description="what was wrong, and what was done about it")]


def correlations(volume: Volume, planes: Sequence[int], report: Reporter) -> list[float | None]:
    """Pearson's correlation of each of `planes` (ascending z) with the one before it in the list, where both have
    tissue; None for the first, and where they share none.  Reads whole chunks, a strip at a time."""
    sums = np.zeros((len(planes), 6))
    _, height, width = volume.shape
    depth, chunk_rows = volume.array.chunks[0], volume.array.chunks[1]
    rows = max(1, _ROWS // chunk_rows) * chunk_rows
    for y in range(0, height, rows):
        end = min(y + rows, height)
        before: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None
        slab, slab_start = np.zeros((0, 0, 0), np.uint8), -1
        for number, z in enumerate(planes):
            if slab_start != z // depth * depth:
                slab_start = z // depth * depth
                last = min(slab_start + depth, volume.shape[0])
                slab = volume.read(Box.between((slab_start, y, 0), (last, end, width)))
            now = shrink(_whole_pools(slab[z - slab_start]), _POOL)
            if before is not None:
                sums[number] += _moments(before, now)
            before = now
            report(y // rows * len(planes) + number, -(-height // rows) * len(planes), "scoring")
    return [_pearson(row) for row in sums]


def _whole_pools(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rest = [(0, -extent % _POOL) for extent in image.shape]
    return np.pad(image, rest)


def _moments(
    first: tuple[NDArray[np.float32], NDArray[np.bool_]], second: tuple[NDArray[np.float32], NDArray[np.bool_]]
) -> NDArray[np.float64]:
    both = first[1] & second[1]
    a, b = first[0][both].astype(np.float64), second[0][both].astype(np.float64)
    return np.array([len(a), a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()])


def _pearson(sums: NDArray[np.float64]) -> float | None:
    n, a, b, aa, bb, ab = sums
    if n < 2:
        return None
    spread = (aa - a * a / n) * (bb - b * b / n)
    return float((ab - a * b / n) / np.sqrt(spread)) if spread > 0 else None
