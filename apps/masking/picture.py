"""A picture of a section's mask over its image, the image alone beside it.

`python -m apps.masking.picture MASKS.zarr IMAGE.zarr PLANE FILE.png`.  Vessels red, cell bodies green, out of tissue
blue; neuropil is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, EnsembleError
from apps.core.files import file_in_the_making
from apps.core.volumes import open_volume
from apps.masking.classes import CLASSES, NOT_ANNOTATED, OUTSIDE, SOMA, VESSEL

COLOURS = {VESSEL: (220, 40, 40), SOMA: (40, 180, 60), OUTSIDE: (60, 90, 220)}
OPACITY = 0.45
LARGEST = 512  # pixels a side of either panel, by default
_GAP = 8  # pixels of white between the two


def mask_over_image(masks: str, image: str, plane: int, size: int = LARGEST) -> NDArray[np.uint8]:
    """RGB uint8 [y, x, 3]: a plane of the image, a white gap, and the same with the classes of its pixels in colour.

    masks, image: volumes of one shape, uint8 zyx.  A plane of more than `size` pixels a side is thinned: every second
    pixel, every third and so on, of both alike, read in strips of rows.
    Raises DataError where a volume is not there or is not uint8, the shapes differ, the plane is none of them, or a
    value is no class.
    """
    if size < 1:
        raise DataError(f"size {size}: expected at least one pixel")
    classes, grey = open_volume(masks), open_volume(image)
    for name, volume in ((masks, classes), (image, grey)):
        if volume.dtype != np.uint8:
            raise DataError(f"{name}: has dtype {volume.dtype}; expected uint8")
    if classes.shape != grey.shape:
        raise DataError(f"{masks}: has shape {classes.shape}; expected that of {image}, {grey.shape}")
    depth, height, width = classes.shape
    if not 0 <= plane < depth:
        raise DataError(f"{masks}: has no plane {plane}; expected 0 to {depth - 1}")
    step = max(1, -(-max(height, width) // size))
    found, below = (_thinned(volume, plane, step) for volume in (classes, grey))
    strange = set(np.unique(found).tolist()) - {*range(len(CLASSES)), NOT_ANNOTATED}
    if strange:
        raise DataError(
            f"{masks}: plane {plane} holds {sorted(strange)[:5]}; expected classes, 0 to {len(CLASSES) - 1}"
        )
    plain = np.repeat(below[..., None], 3, axis=2)
    marked = plain.astype(np.float32)
    for kind, colour in COLOURS.items():
        where = found == kind
        marked[where] = (1 - OPACITY) * marked[where] + OPACITY * np.asarray(colour, np.float32)
    gap = np.full((plain.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([plain, gap, np.rint(marked).astype(np.uint8)], axis=1)


def _thinned(volume: Any, plane: int, step: int) -> NDArray[np.uint8]:
    """Every `step`-th pixel of a plane, rows of chunks at a time."""
    _, height, width = volume.shape
    chunk = int((volume.array.chunks or (1, 512, 512))[1])
    strip = -(-max(chunk, step) // step) * step
    parts = [
        volume.read(Box.between((plane, row, 0), (plane + 1, min(row + strip, height), width)))[0, ::step, ::step]
        for row in range(0, height, strip)
    ]
    return np.concatenate(parts)


def draw(masks: str, image: str, plane: int, picture: Path, size: int = LARGEST) -> None:
    """Write the picture as PNG.  Raises DataError as `mask_over_image` does, or where it cannot be written."""
    from PIL import Image

    drawn = Image.fromarray(mask_over_image(masks, image, plane, size))
    with file_in_the_making(picture) as partial:
        drawn.save(partial, format="PNG", optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apps.masking.picture", description=__doc__)
    parser.add_argument("masks", help="class volume that the stage wrote")
    parser.add_argument("image", help="the aligned volume that it was made of")
    parser.add_argument("plane", type=int, help="plane of both, from 0")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--size", type=int, default=LARGEST, help="largest extent of either panel, pixels")
    options = parser.parse_args(arguments)
    try:
        draw(options.masks, options.image, options.plane, options.picture, options.size)
    except EnsembleError as error:
        print(f"masking picture: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
