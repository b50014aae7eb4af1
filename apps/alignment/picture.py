"""`python -m apps.alignment.picture MONTAGE ALIGNMENT FILE.png`: a stack cut along z, before alignment and after.

The cut goes through the middle row of the sections; rows of the picture are sections, each repeated a few times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.alignment.volume import Layout, Paths
from apps.core.boxes import Box
from apps.core.errors import EnsembleError
from apps.core.files import file_in_the_making
from apps.core.volumes import open_volume

_WIDTH, _HEIGHT, _GAP = 320, 256, 8  # pixels of the picture


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m apps.alignment.picture", description=__doc__)
    parser.add_argument("montage", type=Path)
    parser.add_argument("alignment", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    try:
        draw(options.montage, options.alignment, options.picture)
    except EnsembleError as error:
        print(f"alignment picture: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def draw(montage: Path, alignment: Path, picture: Path) -> None:
    """Write the picture.  Raises DataError where montage or alignment is not there."""
    from PIL import Image

    paths = Paths(alignment)
    layout = Layout.load(paths.solution)
    volume = open_volume(str(paths.volume))
    depth, height, width = volume.shape
    row = height // 2
    after = volume.read(Box.of((0, row, 0), (depth, 1, width)))[:, 0]
    before = np.zeros_like(after)
    for plane, section in enumerate(layout.sections):
        if section.shown_section is None:
            continue
        image = open_volume(str(montage / "sections" / f"{section.shown_section:05d}.zarr"))
        y, x = row + layout.origin[0], max(layout.origin[1], 0)
        end = min(image.shape[2], layout.origin[1] + width)
        if 0 <= y < image.shape[1] and x < end:
            part = image.read(Box.of((0, y, x), (1, 1, end - x)))[0, 0]
            before[plane, x - layout.origin[1] : end - layout.origin[1]] = part
    panels = [_panel(cut) for cut in (before, after)]
    gap = np.full((panels[0].shape[0], _GAP), 255, np.uint8)
    with file_in_the_making(picture) as temporary:
        Image.fromarray(np.concatenate([panels[0], gap, panels[1]], axis=1)).save(
            temporary, format="PNG", optimize=True
        )


def _panel(cut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of the cut [z, x], planes repeated to fill the height."""
    times = max(1, _HEIGHT // len(cut))
    start = max(0, (cut.shape[1] - _WIDTH) // 2)
    panel: NDArray[np.uint8] = np.repeat(cut[: _HEIGHT // times, start : start + _WIDTH], times, axis=0)
    return panel


if __name__ == "__main__":
    sys.exit(main())
