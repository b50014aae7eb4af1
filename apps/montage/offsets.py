"""The offset of two overlapping tiles, to a small part of a pixel, with a confidence.

Coarse: the normalised cross correlation of the two strips that can overlap, at every displacement the stage's error
allows, each over its own overlap (Lewis 1995: products by FFT, means and norms from summed-area tables), on images
reduced as far as the overlap permits.  Fine: Gauss-Newton steps on the difference of the two (Lucas and Kanade 1981) at
every resolution up to the full one.  scikit-image's masked phase correlation computes the coarse part too, for all
displacements at once, at ten times the cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from apps.montage.filters import Floats, band_pass, reduce, sample_between
from apps.montage.records import Point

Extent = tuple[int, int]

_COARSE_PIXELS = 2**17  # of a strip at the coarse step
_COARSE_SIDE = 24  # pixels that the nominal overlap keeps across at the coarse step
_FINE_PIXELS = 2**19  # of an overlap at the finest resolution looked at; more would not make it more exact
_STEPS, _SMALL_STEP = 8, 0.003  # Gauss-Newton: at most so many, until one is smaller (pixels)
_EDGE = 3  # pixels at the rim of an overlap that filters and interpolation have touched


@dataclass(frozen=True)
class Strip:
    """Rows and columns of a tile: `first` (y, x) to `end`, half open."""

    first: Extent
    end: Extent

    @property
    def shape(self) -> Extent:
        return self.end[0] - self.first[0], self.end[1] - self.first[1]

    @property
    def empty(self) -> bool:
        return min(self.shape) <= 0

    def slices(self) -> tuple[slice, slice]:
        return slice(self.first[0], self.end[0]), slice(self.first[1], self.end[1])


@dataclass(frozen=True)
class Look:
    """Mean and standard deviation of both tiles in their common part, in grey levels."""

    mean_a: float
    std_a: float
    mean_b: float
    std_b: float


@dataclass(frozen=True)
class Measured:
    """How tile b lies to tile a.

    Attributes:
        offset: position of b less that of a, (y, x) pixels.
        confidence: normalised cross correlation of the band-passed overlap at that offset.
        significance: the coarse correlation over its standard deviation for unrelated images of the same spectrum.
        spread: expected standard error of the offset along one axis, pixels.
        look: what brightness and contrast the two have there.
    """

    offset: Point
    confidence: float
    significance: float
    spread: float
    look: Look


def strips(shape: Extent, expected: Point, search: int) -> tuple[Strip, Strip]:
    """The parts of tiles a and b (both of `shape`) that overlap at some offset within `search` of `expected`."""
    return _strip(shape, expected, search), _strip(shape, (-expected[0], -expected[1]), search)


def _strip(shape: Extent, offset: Point, search: int) -> Strip:
    first = [max(0, math.floor(d) - search) for d in offset]
    end = [min(n, n + math.ceil(d) + search) for n, d in zip(shape, offset, strict=True)]
    return Strip((first[0], first[1]), (end[0], end[1]))


def measure(
    a: Floats, b: Floats, strip_a: Strip, strip_b: Strip, expected: Point, search: int, min_overlap: int
) -> Measured | None:
    """The offset of tile b to tile a.

    Args:
        a, b: float32 [y, x], the tiles' pixels in `strip_a` and `strip_b` (see `strips`), illumination corrected.
        expected: the stage's offset, (y, x) pixels.
        search: how far from it the true offset may lie, along each axis.
        min_overlap: pixels that an overlap has to have along each axis.

    Returns None where no displacement leaves an overlap with structure in both tiles.
    """
    to_offset = strip_a.first[0] - strip_b.first[0], strip_a.first[1] - strip_b.first[1]
    middle = expected[0] - to_offset[0], expected[1] - to_offset[1]
    factor = _coarse_factor(strip_a.shape, search)
    found = _coarse(reduce(a, factor), reduce(b, factor), middle, search, min_overlap, factor)
    if found is None:
        return None
    shift, significance, grain = found
    finest = _finest(a.shape, b.shape, shift)
    fine = None
    while factor >= 1:
        small_a, small_b = reduce(a, factor), reduce(b, factor)
        start = shift[0] / factor, shift[1] / factor
        fine = _refine(small_a, small_b, start)
        if fine is None:
            return None
        shift = fine.shift[0] * factor, fine.shift[1] * factor
        if factor <= finest:
            break
        factor //= 2
    assert fine is not None
    if any(abs(s - m) > search + 1 for s, m in zip(shift, middle, strict=True)):
        return None
    confidence = fine.correlation
    # Error of a displacement estimated from n independent grains of correlation r, plus what no count of pixels helps.
    unexplained = (1 - confidence**2) / max(confidence, 0.05) ** 2
    spread = math.sqrt(grain * unexplained / max(1.0, fine.pixels * factor**2 / grain) + 0.03**2)
    offset = shift[0] + to_offset[0], shift[1] + to_offset[1]
    return Measured(offset, confidence, significance, spread, _look(small_a, small_b, fine.shift))


def correlation_at(a: Floats, b: Floats, strip_a: Strip, strip_b: Strip, offset: Point) -> tuple[float, Look] | None:
    """Correlation of the band-passed overlap at a given offset; None where nothing overlaps or has structure."""
    shift = [d - p + q for d, p, q in zip(offset, strip_a.first, strip_b.first, strict=True)]
    factor = _finest(a.shape, b.shape, (shift[0], shift[1]))
    small_a, small_b = reduce(a, factor), reduce(b, factor)
    small_shift = shift[0] / factor, shift[1] / factor
    overlap = _Overlap(small_a, small_b)
    correlation = _correlate(*overlap.parts()) if overlap.cut(small_shift) else None
    return None if correlation is None else (correlation, _look(small_a, small_b, small_shift))


def _coarse_factor(shape: Extent, search: int) -> int:
    """Reduction, a power of two, at which a strip is small and its nominal overlap still wide enough."""
    factor = 1
    across = min(shape) - search
    while shape[0] * shape[1] > _COARSE_PIXELS * factor**2 and across >= 2 * factor * _COARSE_SIDE:
        factor *= 2
    return factor


def _finest(shape_a: Extent, shape_b: Extent, shift: Point) -> int:
    rows, columns = (
        min(na, round(t) + nb) - max(0, round(t)) for na, nb, t in zip(shape_a, shape_b, shift, strict=True)
    )
    factor = 1
    while rows * columns > _FINE_PIXELS * factor**2:
        factor *= 2
    return factor


def _coarse(
    a: Floats, b: Floats, middle: Point, search: int, min_overlap: int, factor: int
) -> tuple[Point, float, float] | None:
    """Best shift of b in a's frame (full-resolution pixels), its significance, and the pixels of one image grain.

    What counts is the correlation times the root of the overlap's pixels: a thin overlap correlates by chance.
    """
    a, b = band_pass(a), band_pass(b)
    a, b = a - a.mean(), b - b.mean()
    lags = [
        np.arange(math.floor((m - search) / factor), math.ceil((m + search) / factor) + 1, dtype=np.intp)
        for m in middle
    ]
    starts = [np.maximum(0, t) for t in lags]
    ends = [np.minimum(na, t + nb) for t, na, nb in zip(lags, a.shape, b.shape, strict=True)]
    least = max(2, min_overlap // factor)
    kept = [e - s >= least for s, e in zip(starts, ends, strict=True)]
    lags, starts, ends = ([v[k] for v, k in zip(axis, kept, strict=True)] for axis in (lags, starts, ends))
    if min(len(t) for t in lags) == 0:
        return None
    # Long enough that no shift of interest wraps around onto another.
    sizes = [
        fft.next_fast_len(int(max(na - t[0], t[-1] + nb)) + 1, real=True)
        for t, na, nb in zip(lags, a.shape, b.shape, strict=True)
    ]
    transform_a, transform_b = fft.rfft2(a, sizes), fft.rfft2(b, sizes)
    products = fft.irfft2(transform_a * np.conj(transform_b), sizes)
    products = products[np.ix_(lags[0] % sizes[0], lags[1] % sizes[1])].astype(np.float64)
    pixels = np.multiply.outer(ends[0] - starts[0], ends[1] - starts[1]).astype(np.float64)
    sum_a, square_a = _rectangle_sums(a, starts, ends)
    starts_b = [s - t for s, t in zip(starts, lags, strict=True)]
    ends_b = [e - t for e, t in zip(ends, lags, strict=True)]
    sum_b, square_b = _rectangle_sums(b, starts_b, ends_b)
    norm = (square_a - sum_a**2 / pixels) * (square_b - sum_b**2 / pixels)
    floor = 1e-6 * float(np.mean(a * a, dtype=np.float64)) * float(np.mean(b * b, dtype=np.float64))
    there = norm > floor * pixels**2
    if not there.any() or floor == 0:
        return None
    correlation = np.where(there, products - sum_a * sum_b / pixels, 0.0) / np.sqrt(np.where(there, norm, 1.0))
    weighted = correlation * np.sqrt(pixels)
    row, column = np.unravel_index(int(np.argmax(weighted)), weighted.shape)
    power_a, power_b = np.abs(transform_a) ** 2, np.abs(transform_b) ** 2
    mean_product = float(np.mean(power_a * power_b, dtype=np.float64))
    grain = max(1.0, mean_product / float(np.mean(power_a, dtype=np.float64) * np.mean(power_b, dtype=np.float64)))
    shift = float(lags[0][row] * factor), float(lags[1][column] * factor)
    return shift, float(weighted[row, column]) / math.sqrt(grain), grain * factor**2


def _rectangle_sums(
    image: Floats, starts: list[NDArray[np.intp]], ends: list[NDArray[np.intp]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of pixels and of their squares over rows starts[0][i]:ends[0][i], columns starts[1][j]:ends[1][j]."""
    answers = []
    for values in (image, image * image):
        table = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
        np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
        rows = table[ends[0]] - table[starts[0]]
        answers.append(rows[:, ends[1]] - rows[:, starts[1]])
    return answers[0], answers[1]


@dataclass(frozen=True)
class _Fine:
    shift: Point
    correlation: float
    pixels: int


def _refine(a: Floats, b: Floats, start: Point) -> _Fine | None:
    """Gauss-Newton on the shift (y, x) of b in a's frame; None where the overlap has no structure or is lost."""
    shift = np.array(start)
    overlap = _Overlap(a, b)
    for _ in range(_STEPS):
        if not overlap.cut((float(shift[0]), float(shift[1]))):
            return None
        ours, theirs = (_normalise(part) for part in overlap.parts())
        if ours is None or theirs is None:
            return None
        gradients_a, gradients_b = np.gradient(ours), np.gradient(theirs)
        difference = ours - theirs
        # The noise of the two is independent: products across the images expect no more than the structure gives,
        # and the mean of both gradients pulls to neither side.
        h00, h11 = (_inner(gradients_a[i], gradients_b[i]) for i in (0, 1))
        h01 = 0.5 * (_inner(gradients_a[0], gradients_b[1]) + _inner(gradients_a[1], gradients_b[0]))
        g = [0.5 * _inner(gradients_a[i] + gradients_b[i], difference) for i in (0, 1)]
        determinant = h00 * h11 - h01 * h01
        if min(h00, h11) <= 0 or determinant < 1e-3 * h00 * h11:
            break  # structure in no more than one direction: what the coarse step gave stands
        step = -np.array([h11 * g[0] - h01 * g[1], h00 * g[1] - h01 * g[0]]) / determinant
        shift = shift + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < _SMALL_STEP:
            break
    if not overlap.cut((float(shift[0]), float(shift[1]))):
        return None
    ours, theirs = overlap.parts()
    correlation = _correlate(ours, theirs)
    return None if correlation is None else _Fine((float(shift[0]), float(shift[1])), correlation, ours.size)


class _Overlap:
    """The common part of a and b, where b's first pixel lies at a shift (y, x) in a.

    Both are cut to it before they are filtered, so that what a filter does at its border is alike in the two.
    """

    def __init__(self, a: Floats, b: Floats) -> None:
        self._a, self._b = a, b
        self._ours, self._theirs = a[:0], b[:0]
        self._where: tuple[Extent, ...] = ()
        self._fraction = 0.0, 0.0

    def cut(self, shift: Point) -> bool:
        """Move b to `shift`; False where too little is common."""
        where, fraction = [], []
        for t, na, nb in zip(shift, self._a.shape, self._b.shape, strict=True):
            whole = math.floor(-t)  # b's pixel under a's pixel 0, and the part of a pixel beyond it
            first, end = max(0, -whole), min(na, nb - whole)
            if end - first < 2 * _EDGE + 3:
                return False
            where += [(first, end), (first + whole, end + whole)]
            fraction.append(-t - whole)
        if tuple(where) != self._where:
            self._where = tuple(where)
            (rows_a, rows_b, columns_a, columns_b) = (slice(*interval) for interval in where)
            self._ours = band_pass(self._a[rows_a, columns_a])
            self._theirs = band_pass(self._b[rows_b, columns_b])
        self._fraction = fraction[0], fraction[1]
        return True

    def parts(self) -> tuple[Floats, Floats]:
        """a, and b interpolated at a's pixels, band-passed and without the rim."""
        inner = slice(_EDGE, -_EDGE)
        return self._ours[inner, inner], sample_between(self._theirs, *self._fraction)[inner, inner]


def _inner(a: Floats, b: Floats) -> float:
    """Inner product, summed in one order: a BLAS gives other last bits with other numbers of threads."""
    return float(np.sum(a * b, dtype=np.float64))


def _normalise(image: Floats) -> Floats | None:
    spread = float(image.std())
    return None if spread < 1e-6 else np.asarray((image - image.mean()) / np.float32(spread), np.float32)


def _correlate(a: Floats, b: Floats) -> float | None:
    ours, theirs = _normalise(a), _normalise(b)
    if ours is None or theirs is None:
        return None
    return float(np.clip(np.mean(ours * theirs, dtype=np.float64), -1.0, 1.0))


def _look(a: Floats, b: Floats, shift: Point) -> Look:
    t = [round(s) for s in shift]
    ends = [min(na, s + nb) for s, na, nb in zip(t, a.shape, b.shape, strict=True)]
    starts = [max(0, s) for s in t]
    ours = a[starts[0] : ends[0], starts[1] : ends[1]]
    theirs = b[starts[0] - t[0] : ends[0] - t[0], starts[1] - t[1] : ends[1] - t[1]]
    return Look(float(ours.mean()), float(ours.std()), float(theirs.mean()), float(theirs.std()))
