"""Tiled inference: a section is masked tile by tile, each read with all that its answer depends on.

Tiles start at multiples of the network's unit, so that each is averaged and pooled as the whole section would be, and
overlap by twice the network's reach: what is kept of them is what the whole section at once would give, so that there
is no seam to blend.  Beyond the section's borders nothing is shown (0).  Memory is that of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, tiles
from apps.core.volumes import Volume
from apps.masking.classes import OUTSIDE
from apps.masking.network import NetworkParameters, build
from apps.masking.scoring import Certainty
from apps.masking.sections import NO_TISSUE, Floats, SectionStatistics, normalise
from apps.unet.network import ready_to_predict
from apps.unet.weights import Weights


@dataclass(frozen=True)
class MaskedTile:
    """A part of a section: `box` (a plane thick) and its classes, uint8 [y, x]."""

    box: Box
    classes: NDArray[np.uint8]


class Segmenter:
    """A network, ready to mask planes of an image."""

    def __init__(self, network: NetworkParameters, weights: Weights, tile: int, overlap: int | None = None) -> None:
        """`tile`: pixels along y and x, rounded up to the network's unit.  `overlap`: pixels that a tile reads around
        it, rounded up likewise; None: all that its answer depends on."""
        unit = network.unit
        self._network = network
        self._tile = -(-tile // unit) * unit
        self._margin = network.margin if overlap is None else -(-overlap // unit) * unit
        self._predict = ready_to_predict(build(network), weights, "softmax")

    def segment(
        self, image: Volume, region: Box, statistics: SectionStatistics, certainty: Certainty | None = None
    ) -> Iterator[MaskedTile]:
        """Mask `region`, one plane thick, tile by tile; `certainty` is added to."""
        unit, (plane, top, left), end = self._network.unit, region.offset, region.end
        grid = Box.between((plane, top // unit * unit, left // unit * unit), end)
        # All tiles are read with one extent, for which the network is prepared once.
        height, width = (min(self._tile, -(-extent // unit) * unit) for extent in grid.shape[1:])
        for own in tiles(grid, (1, height, width)):
            yield self._mask(image, own, region, (height, width), statistics, certainty)

    def _mask(
        self,
        image: Volume,
        own: Box,
        region: Box,
        extent: tuple[int, int],
        statistics: SectionStatistics,
        certainty: Certainty | None,
    ) -> MaskedTile:
        factor, margin = int(self._network.downsample), self._margin
        pixels = _read_around(image, own, margin, extent)
        probabilities = self._predict(normalise(pixels, statistics, factor))
        inner = pixels[margin : margin + own.shape[1], margin : margin + own.shape[2]]
        classes = enlarge(probabilities, factor, (margin, margin), own.shape[1:]).argmax(-1).astype(np.uint8)
        classes[inner == NO_TISSUE] = OUTSIDE
        if certainty is not None:
            self._judge(certainty, probabilities, pixels, own, image)
        part = own.intersection(region)
        rows, columns = part.slices(own.offset)[1:]
        return MaskedTile(part, classes[rows, columns])

    def _judge(
        self, certainty: Certainty, probabilities: Floats, pixels: NDArray[np.uint8], own: Box, image: Volume
    ) -> None:
        factor, margin = int(self._network.downsample), self._margin
        start = margin // factor
        # A block at the section's border counts where most of it is in the section; a row and a column more for pairs.
        counts = [-(-extent // factor) for extent in own.shape[1:]]
        more = [int(end < limit) if margin else 0 for end, limit in zip(own.end[1:], image.shape[1:], strict=True)]
        rows, columns = (slice(start, start + count + one) for count, one in zip(counts, more, strict=True))
        height, width = pixels.shape
        blocks = (pixels != NO_TISSUE).reshape(height // factor, factor, width // factor, factor)
        certainty.add(probabilities[rows, columns], blocks.any(axis=(1, 3))[rows, columns], counts[0], counts[1])


def enlarge(values: Floats, factor: int, start: tuple[int, int], extent: tuple[int, ...]) -> Floats:
    """Bilinear interpolation of [y, x, class], whose element (i, j) is the middle of a block of factor x factor pixels.

    Returns the pixels [start, start + extent) of the whole.
    """
    for axis, (first, count) in enumerate(zip(start, extent, strict=True)):
        if factor == 1:
            values = np.take(values, np.arange(first, first + count), axis)
            continue
        place = (np.arange(first, first + count) + 0.5) / factor - 0.5
        low = np.floor(place).astype(np.intp)
        share = (place - low).astype(np.float32)
        share = share[:, None, None] if axis == 0 else share[:, None]
        last = values.shape[axis] - 1
        lower, upper = (np.take(values, np.clip(index, 0, last), axis) for index in (low, low + 1))
        values = lower + (upper - lower) * share
    return values


def _read_around(image: Volume, own: Box, margin: int, extent: tuple[int, int]) -> NDArray[np.uint8]:
    """The tile's pixels [y, x] with `margin` around it, `extent` + 2 `margin`; 0 where the image has ended."""
    spans, pads = [], []
    for start, size, limit in zip(own.offset[1:], extent, image.shape[1:], strict=True):
        first, end = start - margin, start + size + margin
        spans.append((max(first, 0), min(end, limit)))
        pads.append((max(-first, 0), max(end - limit, 0)))
    plane = own.offset[0]
    (top, bottom), (left, right) = spans
    pixels = image.read(Box.between((plane, top, left), (plane + 1, bottom, right)))[0]
    return np.pad(pixels, pads, constant_values=NO_TISSUE)
