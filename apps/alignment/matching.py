"""Matching two sections: one rigid motion for the whole, then blocks from a coarse scale to the finest.

At every scale the second section is looked at through what the coarser scales know, so that a block is searched for
near its place and in its orientation only.  A scale is worked off in tiles that are read from disk: memory does not
grow with the section.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.alignment.blocks import BlockMatches, match_blocks
from apps.alignment.coarse import find_rigid
from apps.alignment.fields import consistent, fill
from apps.alignment.images import Piece, flatten, on_lattice, read_piece, sample
from apps.alignment.settings import MatchSettings
from apps.alignment.transforms import Grid, Points, Rigid, fit_rigid_robustly, grid_nodes
from apps.core.volumes import Volume

_COARSE_SIZE = (128, 256)  # pixels a side at which rotation and translation are found: of small and large sections
_LATTICE = 8  # pixels of the scale between places at which the guess is looked at
_FIRST_SIZE = 1024  # pixels a side of the first scale at which blocks are matched, at most
_TILE = 512  # pixels of the scale, a side of what is matched at once
_FINE_SEARCH = 4  # pixels of the scale: how far off a point can be once a coarser scale has placed it
_FEWEST_BLOCKS = 6
_CHANCE = 1.5


@dataclass(frozen=True)
class Matches:
    """Where points of one section are in another.

    Attributes:
        first, second: [n, 2] float64, the same points of the tissue on both, pixels (y, x) of each section.
        weight: [n], 0 to 1, the correlation of the blocks.
        rigid: the motion from the first section to the second that fits them best.
        coarse_correlation: of the whole sections, at a small scale.
        matched: share of the blocks with tissue in both sections that gave a match.
        correlation: median over the matches; 0 without one.
        accepted: whether there are enough of them for the pair to count.
    """

    first: Points
    second: Points
    weight: NDArray[np.float64]
    rigid: Rigid
    coarse_correlation: float
    matched: float
    correlation: float
    accepted: bool


@dataclass(frozen=True)
class _Guess:
    """Where points of the first section are on the second, as far as is known."""

    rigid: Rigid
    field: Grid | None = None

    def __call__(self, points: Points) -> Points:
        placed = self.rigid(points)
        return placed if self.field is None else placed + self.field(points)


@dataclass(frozen=True)
class _Scale:
    """Block matching at one scale: `shift` [gy, gx, 2] in pixels of the section, on top of the guess it began with."""

    grid: Grid
    found: BlockMatches
    good: NDArray[np.bool_]

    @property
    def shift(self) -> Points:
        return self.found.shift.reshape(self.grid.values.shape)

    @property
    def matched(self) -> float:
        expected = int(self.found.tissue.sum())
        return float(self.good.sum()) / expected if expected else 0.0

    @property
    def share_by_chance(self) -> float:
        """What blocks of unrelated images can have in common: neighbouring ones overlap, and are wrong together."""
        return _CHANCE / math.sqrt(max(int(self.found.tissue.sum()), 1))


def match_sections(first: Volume, second: Volume, settings: MatchSettings) -> Matches:
    """Match two sections, uint8 (1, H, W) volumes in which 0 is no tissue."""
    coarse = _coarse(first, second, settings)
    guess, factors = _Guess(coarse[0]), _factors(first, settings)
    for factor in factors:
        top = factor == factors[0]
        search = math.ceil(settings.search / factor) if top else _FINE_SEARCH
        scale = _match_scale(first, second, guess, factor, max(search, 2), settings)
        nodes = grid_nodes(scale.grid)
        if scale.good.sum() < _FEWEST_BLOCKS or scale.matched < scale.share_by_chance + settings.min_matched:
            return _no_match(guess.rigid, coarse[1], scale.matched)
        target = guess(nodes) + scale.shift
        rigid = fit_rigid_robustly(nodes[scale.good], target[scale.good], 1.0) if top else guess.rigid
        if factor == factors[-1]:
            break
        field = Grid(scale.grid.origin, scale.grid.spacing, fill(target - rigid(nodes), scale.good, 0.7))
        guess = _Guess(rigid, field)
    correlation = scale.found.correlation.reshape(scale.good.shape)[scale.good]
    ends = nodes[scale.good], target[scale.good]
    return Matches(
        first=ends[0],
        second=ends[1],
        weight=correlation,
        rigid=fit_rigid_robustly(*ends, 1.0),
        coarse_correlation=coarse[1],
        matched=scale.matched,
        correlation=float(np.median(correlation)),
        accepted=True,
    )


def _no_match(rigid: Rigid, coarse_correlation: float, matched: float) -> Matches:
    none = np.zeros((0, 2))
    return Matches(none, none, np.zeros(0), rigid, coarse_correlation, matched, 0.0, False)


def _coarse(first: Volume, second: Volume, settings: MatchSettings) -> tuple[Rigid, float]:
    extent = max(*first.shape, *second.shape)
    factor = math.ceil(extent / min(max(extent // 8, _COARSE_SIZE[0]), _COARSE_SIZE[1]))
    found = find_rigid(_whole(first, factor), _whole(second, factor), settings.max_rotation_deg)
    # From centres of the scale's pixels to those of the sections.
    half = (factor - 1) / 2
    small = found.rigid
    shift = np.asarray(small.shift) * factor + half - Rigid(small.angle, (0.0, 0.0))(np.array([half, half]))
    return Rigid(small.angle, (float(shift[0]), float(shift[1]))), found.correlation


def _whole(section: Volume, factor: int) -> Piece:
    _, height, width = section.shape
    return read_piece(section, (0, math.ceil(height / factor), 0, math.ceil(width / factor)), factor)


def _factors(section: Volume, settings: MatchSettings) -> list[int]:
    """The scales, coarse to fine, as pixels of the section a side of theirs."""
    extent = max(section.shape)
    factor = max(2 * settings.finest, 1 << max(0, math.ceil(math.log2(extent / _FIRST_SIZE))))
    while factor > settings.finest and min(section.shape[1:]) < 3 * settings.block * factor:
        factor //= 2  # a small section has no room for blocks at a coarse scale
    factors = [factor]
    while factors[-1] > settings.finest:
        factors.append(factors[-1] // 2)
    return factors


def _match_scale(
    first: Volume, second: Volume, guess: _Guess, factor: int, search: int, settings: MatchSettings
) -> _Scale:
    _, height, width = first.shape
    step = settings.spacing // settings.finest  # pixels of the scale, so that each scale has as many as it can tell
    rows, columns = (max(2, math.ceil(extent / factor / step)) for extent in (height, width))
    grid = Grid((step * factor - 1) / 2, float(step * factor), np.zeros((rows, columns, 2)))
    shift, correlation, ratio = np.zeros((rows, columns, 2)), np.zeros((rows, columns)), np.ones((rows, columns))
    tissue = np.zeros((rows, columns), bool)
    for ys, xs in _tiles(rows, columns, max(1, _TILE // step)):
        found = _match_tile(first, second, guess, factor, search, settings.block, step, (ys, xs))
        part, shape = np.s_[ys.start : ys.stop, xs.start : xs.stop], (len(ys), len(xs))
        shift[part], correlation[part] = found.shift.reshape(*shape, 2) * factor, found.correlation.reshape(shape)
        ratio[part], tissue[part] = found.ratio.reshape(shape), found.tissue.reshape(shape)
    trusted = tissue & (correlation >= settings.min_correlation) & (ratio <= settings.max_peak_ratio)
    good = consistent(shift / factor, trusted)
    return _Scale(grid, BlockMatches(shift.reshape(-1, 2), correlation.ravel(), ratio.ravel(), tissue.ravel()), good)


def _tiles(rows: int, columns: int, size: int) -> Iterator[tuple[range, range]]:
    for y in range(0, rows, size):
        for x in range(0, columns, size):
            yield range(y, min(y + size, rows)), range(x, min(x + size, columns))


def _match_tile(
    first: Volume,
    second: Volume,
    guess: _Guess,
    factor: int,
    search: int,
    block: int,
    step: int,
    nodes: tuple[range, range],
) -> BlockMatches:
    """Match the blocks around some nodes; the block of node i begins at i * step + (step - block) / 2."""
    margin = search + block  # of it, half a block is context for the flattening
    lead = (step - block) // 2
    window = [v for r in nodes for v in (r.start * step + lead - margin, (r.stop - 1) * step + lead + block + margin)]
    a = read_piece(first, (window[0], window[1], window[2], window[3]), factor)
    half = (factor - 1) / 2  # from pixels of the scale to the middle of those of the section that they average
    places = on_lattice(
        lambda points: (guess(points * factor + half) - half) / factor,
        (window[0], window[2]),
        (a.pixels.shape[0], a.pixels.shape[1]),
        _LATTICE,
    )
    low, high = np.floor(places.min(axis=(1, 2))).astype(int) - 1, np.ceil(places.max(axis=(1, 2))).astype(int) + 2
    limit = [math.ceil(extent / factor) for extent in second.shape[1:]]
    ends = [(max(0, min(int(lo), n)), max(0, min(int(hi), n))) for lo, hi, n in zip(low, high, limit, strict=True)]
    if not a.valid.any() or any(lo == hi for lo, hi in ends):
        count = len(nodes[0]) * len(nodes[1])
        return BlockMatches(np.zeros((count, 2)), np.zeros(count), np.ones(count), np.zeros(count, bool))
    b = sample(read_piece(second, (*ends[0], *ends[1]), factor), places)
    ny, nx = np.meshgrid(*(np.arange(len(r)) * step + margin for r in nodes), indexing="ij")
    corners = np.stack([ny.ravel(), nx.ravel()], axis=1)
    images = (flatten(a, block), a.valid), (flatten(b, block), b.valid)
    return match_blocks(*images, corners, block, search)
