"""Where to start objects: google/ffn's seed policies.

    find_seeds("peaks", image, voxel_size, margin, reverse=True, excluded=mask)

All points are zyx.  The same request gives the same seeds, with any number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError

SeedPolicyName = Literal["peaks", "peaks2d", "grid", "maximum"]

Points = NDArray[np.int64]
Slices = tuple[slice, ...]
Item = TypeVar("Item")
Values = TypeVar("Values", NDArray[np.float32], NDArray[np.float64])

# Constants of google/ffn's policies: all peaks, PolicyPeaks, PolicyPeaks2d, PolicyGrid3d.
_SIGMA = 49.0 / 6.0
_JITTER = 1e-4
_JITTER_SEED = 42
_PEAKS_DISTANCE, _PEAKS_THRESHOLD = 3, 0.0
_PEAKS2D_DISTANCE, _PEAKS2D_THRESHOLD = 7, 2.5
GRID_STEP = 16
GRID_OFFSETS = (0, 8, 4, 12, 2, 10, 14)


@dataclass(frozen=True)
class SeedRequest:
    """What a policy may look at.

    Attributes:
        image: normalised image, float32 zyx.
        voxel_size: zyx; only its ratios matter.
        margin: half a field of view zyx; a policy may leave out points closer than that to the border.
        excluded: True where no object may be, of the image's shape; None for nowhere.
        grid_step, grid_offsets: of `grid`.
        brightness, separation: of `maximum`.
        threads: to compute with.
    """

    image: NDArray[np.float32]
    voxel_size: tuple[float, float, float]
    margin: Triple
    excluded: NDArray[np.bool_] | None
    grid_step: int
    grid_offsets: tuple[int, ...]
    brightness: NDArray[Any] | None
    separation: int
    threads: int


def find_seeds(
    policy: SeedPolicyName,
    image: NDArray[np.float32],
    voxel_size: tuple[float, float, float],
    margin: Triple,
    *,
    reverse: bool = False,
    excluded: NDArray[np.bool_] | None = None,
    grid_step: int = GRID_STEP,
    grid_offsets: Sequence[int] = GRID_OFFSETS,
    brightness: NDArray[Any] | None = None,
    separation: int = 0,
    threads: int = 1,
) -> Points:
    """Seeds [n, 3] int64 zyx of the policy in the order in which to try them.

    Only those at least `margin` zyx (half a field of view) off the border and outside of `excluded`.

    Args:
        policy: one of `POLICIES`.
        image: normalised, float32 zyx.
        voxel_size: zyx; only its ratios matter.
        reverse: last seed first (google/ffn's ReverseCoords), as forward-reverse consensus takes it.
        excluded: voxels of the image's shape in which no object may be; peaks keep their distance to them as to edges.
        grid_step, grid_offsets: of `grid`.
        brightness: of `maximum`, the map in the image's place (a predicted probability, say), of the image's shape.
        separation: of `maximum`, see there.
        threads: to compute with; they do not change the result.

    Raises ParameterError for an unknown policy or impossible option, DataError for arrays that do not fit the image.
    """
    if policy not in POLICIES:
        raise ParameterError(f"seed policy {policy!r}: expected one of {', '.join(POLICIES)}")
    if grid_step < 1 or not grid_offsets or min(grid_offsets) < 0 or separation < 0:
        raise ParameterError(
            f"grid_step {grid_step}, grid_offsets {tuple(grid_offsets)}, separation {separation}: expected a step from "
            f"1, at least one offset, and nothing negative"
        )
    for name, array in (("excluded", excluded), ("brightness", brightness)):
        if array is not None and array.shape != image.shape:
            raise DataError(f"{name} has shape {array.shape}; expected the image's {image.shape}")
    request = SeedRequest(
        image.astype(np.float32, copy=False),
        voxel_size,
        margin,
        excluded,
        grid_step,
        tuple(grid_offsets),
        brightness,
        separation,
        threads,
    )
    found = POLICIES[policy](request)
    found = found[((found >= margin) & (found + margin < image.shape)).all(axis=1)]
    if excluded is not None:
        found = found[~excluded[tuple(found.T)]]
    return np.ascontiguousarray(found[::-1] if reverse else found)


def peaks(request: SeedRequest) -> Points:
    """Points far from edges of the image, in zyx order: google/ffn's PolicyPeaks.

    Edges are voxels whose Sobel magnitude is above its local (Gaussian) mean; seeds are the local maxima of the
    distance to them.  A small fixed jitter decides between equal distances.
    """
    interior = ~_edges(request.image, request.threads)
    if request.excluded is not None:
        interior &= ~request.excluded
    if not interior.any():
        return _no_points()
    distance = _distance(interior, request.voxel_size, request.threads)
    if request.excluded is not None:
        distance[request.excluded] = -1
    return _jittered_peaks(distance, _PEAKS_DISTANCE, _PEAKS_THRESHOLD, request.margin, request.threads)


def peaks2d(request: SeedRequest) -> Points:
    """The same in every section by itself, with wider spacing, in zyx order: google/ffn's PolicyPeaks2d.

    Peaks are 7 voxels apart and more than 2.5 voxels from an edge of the section (pixels taken as square); every
    section gets the same jitter.
    """
    margin = request.margin[1:]

    def section(z: int) -> Points:
        interior = ~_edges(request.image[z], threads=1)
        if request.excluded is not None:
            interior &= ~request.excluded[z]
        distance = _distance(interior, (1.0, 1.0), threads=1)
        found = _jittered_peaks(distance, _PEAKS2D_DISTANCE, _PEAKS2D_THRESHOLD, margin, threads=1)
        return np.insert(found, 0, z, axis=1)

    sections = range(request.margin[0], request.image.shape[0] - request.margin[0])
    return np.concatenate([_no_points(), *_in_threads(section, sections, request.threads)])


def grid(request: SeedRequest) -> Points:
    """Points `grid_step` apart on all axes, a whole grid for every offset, in that order: google/ffn's PolicyGrid3d."""
    grids = [_no_points()]
    for offset in request.grid_offsets:
        axes = [np.arange(offset, n, request.grid_step) for n in request.image.shape]
        grids.append(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3))
    return np.concatenate(grids)


def maximum(request: SeedRequest) -> Points:
    """Every point, brightest first, equal ones in zyx order: google/ffn's PolicyMax.

    With `separation` s > 0 only those points that no other within s voxels along each axis outshines.
    """
    from scipy import ndimage

    values = request.image if request.brightness is None else request.brightness
    inside = tuple(slice(m, max(m, n - m)) for m, n in zip(request.margin, values.shape, strict=True))
    candidates = np.ones(values[inside].shape, np.bool_)
    if request.separation:
        candidates = (values == ndimage.maximum_filter(values, 2 * request.separation + 1, mode="nearest"))[inside]
    points = np.argwhere(candidates)
    order = np.argsort(-values[inside][candidates].astype(np.float64), kind="stable")
    return points[order] + np.array(request.margin)


# To add a policy: a function of a SeedRequest that gives points [n, 3] zyx in order, and its name in `SeedPolicyName`.
POLICIES: dict[SeedPolicyName, Callable[[SeedRequest], Points]] = {
    "peaks": peaks,
    "peaks2d": peaks2d,
    "grid": grid,
    "maximum": maximum,
}


def _no_points() -> Points:
    return np.zeros((0, 3), np.int64)


def _edges(image: NDArray[np.float32], threads: int) -> NDArray[np.bool_]:
    """True where the Sobel magnitude of a 2-D or 3-D image is above its Gaussian mean.

    Bit-equal to SciPy's `generic_gradient_magnitude` and `gaussian_filter` on the whole array.
    """
    from scipy import ndimage

    magnitude = np.empty(image.shape, np.float32)

    def gradient(block: slice) -> None:
        # A Sobel filter reaches one voxel out of the block.
        padded = slice(max(block.start - 1, 0), block.stop + 1)
        found = ndimage.generic_gradient_magnitude(image[padded], ndimage.sobel)
        magnitude[block] = found[block.start - padded.start :][: block.stop - block.start]

    _in_threads(gradient, list(_blocks(image.shape[0], threads)), threads)

    def smooth(lines: NDArray[np.float32], axis: int, output: NDArray[np.float32]) -> None:
        ndimage.gaussian_filter1d(lines, _SIGMA, axis, output=output, mode="reflect")

    return magnitude > _sweep(smooth, magnitude, threads)


def _distance(interior: NDArray[np.bool_], voxel_size: tuple[float, ...], threads: int) -> NDArray[np.float32]:
    """Distance of interior voxels to the nearest other one; -1 where there is none."""
    import edt

    distance = edt.edt(interior, anisotropy=voxel_size, parallel=threads).astype(np.float32, copy=False)
    distance[~np.isfinite(distance)] = -1
    return distance


def _jittered_peaks(
    distance: NDArray[np.float32], spacing: int, threshold: float, margin: tuple[int, ...], threads: int
) -> Points:
    """Local maxima [n, ndim] of distance + jitter above `threshold`, at least `margin` off the border, in order.

    What skimage's `peak_local_max(..., min_distance=spacing)` finds there.  That function looks at the whole array
    and then thins out equal neighbouring maxima; here only what lies inside the margin is looked at, and it is called
    only where there are equal maxima.
    """
    jittered = np.random.RandomState(_JITTER_SEED).rand(*distance.shape)
    jittered *= _JITTER
    jittered += distance
    margin = tuple(max(m, spacing) for m in margin)
    # Two spacings around: a peak in there may compete with one that lies a spacing off, which needs its surroundings.
    rim = [max(m - 2 * spacing, 0) for m in margin]
    around = tuple(slice(r, max(n - r, r)) for r, n in zip(rim, distance.shape, strict=True))
    values = jittered[around]
    if 0 in values.shape:
        return np.zeros((0, distance.ndim), np.int64)
    candidates = (values == _box_maximum(values, spacing, threads)) & (values > threshold)
    heights = values[candidates]
    if len(np.unique(heights)) == len(heights):
        found = np.argwhere(candidates) + rim
    else:
        from skimage.feature import peak_local_max

        found = peak_local_max(jittered, min_distance=spacing, threshold_abs=threshold, threshold_rel=0)
        found = found[np.lexsort(found.T[::-1])]
    inside = ((found >= margin) & (found + margin < distance.shape)).all(axis=1)
    return found[inside].astype(np.int64)


def _box_maximum(values: NDArray[np.float64], radius: int, threads: int) -> NDArray[np.float64]:
    """Maximum over the box of 2 radius + 1 voxels around each voxel."""
    from scipy import ndimage

    def widen(lines: NDArray[np.float64], axis: int, output: NDArray[np.float64]) -> None:
        ndimage.maximum_filter1d(lines, 2 * radius + 1, axis, output=output, mode="nearest")

    return _sweep(widen, values, threads)


def _sweep(filter_lines: Callable[[Values, int, Values], None], values: Values, threads: int) -> Values:
    """Filter along every axis in turn, as SciPy's separable filters do; `filter_lines(values, axis, output)`."""
    source = values
    for axis in range(values.ndim):
        target = np.empty_like(values) if source is values else source
        parts = [(source[part], axis, target[part]) for part in _across(axis, values.shape, threads)]
        _in_threads(lambda part: filter_lines(*part), parts, threads)
        source = target
    return source


def _blocks(extent: int, number: int) -> Iterator[slice]:
    """`range(extent)` cut into at most `number` slices."""
    ends = np.linspace(0, extent, min(number, extent) + 1).astype(int).tolist()
    return (slice(a, b) for a, b in itertools.pairwise(ends))


def _across(axis: int, shape: tuple[int, ...], threads: int) -> list[Slices]:
    """The array cut across another axis than `axis`, so that every line along `axis` stays whole."""
    cut = 1 if axis == 0 else 0
    return [(slice(None),) * cut + (block,) for block in _blocks(shape[cut], threads)]


def _in_threads(work: Callable[[Item], Any], items: Sequence[Item], threads: int) -> list[Any]:
    """`work` of every item, in order; SciPy leaves the interpreter lock while it filters."""
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))
