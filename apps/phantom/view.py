"""A picture of one section of a phantom: `python -m apps.phantom.view FOLDER --section 6 --output picture.jpg`.

Side by side: the block's image; the labels; what else is true (vessels red, cell bodies green, resin blue, clefts
magenta, vesicle clouds yellow); and the section's tiles where the stage says they lie.  What a phantom does not have is
left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.core.boxes import Box
from apps.core.errors import DataError, EnsembleError
from apps.core.volumes import open_volume
from apps.phantom.imaging import TABLE
from apps.phantom.picture import OUTSIDE, SOMA, VESSEL

Colours = NDArray[np.uint8]

_GAP = 4  # white pixels between panels
_MASKS = {VESSEL: (220, 40, 40), SOMA: (40, 180, 60), OUTSIDE: (60, 90, 220)}
_CLEFT, _CLOUD = (255, 0, 255), (240, 220, 0)


def section_picture(folder: Path, section: int) -> Colours:
    """uint8 [y, x, 3]: the panels of one section of the phantom in `folder`.

    Raises DataError where there is no phantom, or no such section.
    """
    image = _plane(folder / "image.zarr", section)
    grey = np.repeat(image[..., None], 3, axis=2)
    panels = [grey, _coloured(_plane(folder / "labels.zarr", section))]
    if (folder / "masks.zarr").is_dir():
        panels.append(_marked(grey, folder, section))
    if (folder / TABLE).is_file():
        panels.append(_laid_out(folder, section, (image.shape[0], image.shape[1])))
    gap = np.full((image.shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1)


def _plane(volume: Path, section: int) -> NDArray[Any]:
    opened = open_volume(str(volume))
    depth, height, width = opened.shape
    if not 0 <= section < depth:
        raise DataError(f"{volume}: has no section {section}; expected 0 to {depth - 1}")
    plane: NDArray[Any] = opened.read(Box.of((section, 0, 0), (1, height, width)))[0]
    return plane


def _coloured(labels: NDArray[Any]) -> Colours:
    """A colour for each label, black for 0."""
    palette = np.random.default_rng(0).integers(50, 256, (4096, 3)).astype(np.uint8)
    coloured = palette[labels % len(palette)]
    coloured[labels == 0] = 0
    return coloured


def _marked(grey: Colours, folder: Path, section: int) -> Colours:
    """The image with masks, clefts and clouds laid over it."""
    masks = _plane(folder / "masks.zarr", section)
    layers = [(masks == kind, colour) for kind, colour in _MASKS.items()]
    layers += [
        (_plane(folder / "vesicles.zarr", section) > 0, _CLOUD),
        (_plane(folder / "clefts.zarr", section) > 0, _CLEFT),
    ]
    marked = grey.copy()
    for where, colour in layers:
        marked[where] = grey[where] // 2 + np.asarray(colour, np.uint8) // 2
    return marked


def _laid_out(folder: Path, section: int, shape: tuple[int, int]) -> Colours:
    """The tiles at their nominal places, later ones over earlier ones; black where there is none."""
    canvas = np.zeros((*shape, 3), np.uint8)
    with (folder / TABLE).open() as file:
        for row in csv.DictReader(file):
            if int(row["section"]) == section:
                tile = np.asarray(Image.open(folder / row["path"]))
                y, x = round(float(row["y"])), round(float(row["x"]))
                canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile[..., None]
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.phantom.view", description="A picture of a phantom's section."
    )
    parser.add_argument("folder", type=Path, help="the phantom's output folder")
    parser.add_argument("--section", type=int, default=0, help="section, from 0")
    parser.add_argument("--output", type=Path, default=Path("phantom.jpg"), help="picture, .jpg or .png")
    options = parser.parse_args(arguments)
    try:
        picture = section_picture(options.folder, options.section)
        Image.fromarray(picture).save(options.output, quality=75)
    except (EnsembleError, OSError, ValueError) as error:
        print(f"phantom.view: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
