"""How good the alignment is, without ground truth: how alike neighbouring planes are, and how far meshes are bent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from apps.alignment.images import shrink
from apps.alignment.stack import Fault
from apps.core.boxes import Box
from apps.core.errors import UserError
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
    misfit: Annotated[
        float | None, Meta(description="what residuals that lie together have in common, root mean square, pixels")
    ]
    strain: Annotated[float | None, Meta(description="root mean square of the mesh cells' principal stretch less 1")]
    largest_strain: Annotated[float | None, Meta(description="the largest of them")]
    folds: Annotated[int | None, Meta(description="cells of the mesh that are turned over")]
    correlation_previous: Annotated[
        float | None, Meta(description="of its pixels with those of the previous plane that shows its own image")
    ] = None
    correlation_next: Annotated[float | None, Meta(description="the same with the next one")] = None
    pixels: Annotated[
        str | None, Meta(description="hash of what the plane's pixels depend on; null before they are scored")
    ] = None


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


def load_report(file: Path) -> AlignmentReport | None:
    """The report; None where there is none, or none of this form."""
    try:
        return AlignmentReport.load(file)
    except UserError:
        return None


def score_sections(
    volume: Volume,
    sections: Sequence[SectionScore],
    identities: Sequence[str],
    before: Sequence[SectionScore],
    report: Reporter,
) -> tuple[SectionScore, ...]:
    """The sections, one a plane, with their correlations.

    identities: of what the planes' pixels depend on.  What was found `before` for two planes with the same pixels is
    taken from there.
    """
    scores = [replace(section, pixels=identity) for section, identity in zip(sections, identities, strict=True)]
    own = [plane for plane, section in enumerate(scores) if section.shown == "own"]
    earlier = [section for section in before if section.shown == "own"]
    known = {(a.pixels, b.pixels): b.correlation_previous for a, b in itertools.pairwise(earlier)}
    pairs = list(itertools.pairwise(own))
    wanted = [pair for pair in pairs if (scores[pair[0]].pixels, scores[pair[1]].pixels) not in known]
    found = dict(zip(wanted, correlations(volume, wanted, report), strict=True))
    for a, b in pairs:
        value = found[a, b] if (a, b) in found else known[scores[a].pixels, scores[b].pixels]
        scores[a] = replace(scores[a], correlation_next=value)
        scores[b] = replace(scores[b], correlation_previous=value)
    return tuple(scores)


def correlations(volume: Volume, pairs: Sequence[tuple[int, int]], report: Reporter) -> list[float | None]:
    """Pearson's correlation of pairs of planes (z of both; ascending), where both have tissue; None where they share
    none.  Reads whole chunks, a strip at a time."""
    sums = np.zeros((len(pairs), 6))
    height = volume.shape[1]
    depth, chunk_rows = volume.array.chunks[0], volume.array.chunks[1]
    rows = max(1, _ROWS // chunk_rows) * chunk_rows
    for y in range(0, height, rows):
        strip = _Strip(volume, y, min(y + rows, height), depth)
        for number, (first, second) in enumerate(pairs):
            sums[number] += _moments(strip.plane(first), strip.plane(second))
            report(y // rows * len(pairs) + number, -(-height // rows) * len(pairs), "scoring")
    return [_pearson(row) for row in sums]


class _Strip:
    """Some rows of the volume's planes, made small; a slab of chunks and two planes are kept at a time."""

    def __init__(self, volume: Volume, start: int, end: int, depth: int) -> None:
        self._volume, self._rows, self._depth = volume, (start, end), depth
        self._slab_start, self._slab = -1, np.zeros((0, 0, 0), np.uint8)
        self._planes: dict[int, tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def plane(self, z: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Means and tissue."""
        if z not in self._planes:
            start = z // self._depth * self._depth
            if start != self._slab_start:
                last = min(start + self._depth, self._volume.shape[0])
                box = Box.between((start, self._rows[0], 0), (last, self._rows[1], self._volume.shape[2]))
                self._slab_start, self._slab = start, self._volume.read(box)
            if len(self._planes) > 1:
                del self._planes[min(self._planes)]
            self._planes[z] = shrink(_whole_pools(self._slab[z - start]), _POOL)
        return self._planes[z]


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
