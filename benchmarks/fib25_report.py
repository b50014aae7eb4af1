"""The pictures of benchmarks.fib25_search, small: a search's plots, and what its best models make of a slice."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import analysis
from analysis.pictures import Colours, data_uri, grey, match_ids, overlay
from apps.core.boxes import Box
from apps.core.files import write_atomically
from apps.core.volumes import open_volume
from apps.trial.stage import SEGMENTATION
from ensemble.search.run import SearchRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "objective"
DPI = 80
COLOURS = 128  # of a PNG's palette
EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
SHRUNK, PAGE_COLOURS = 0.6, 192
MOST_BYTES = 60_000
ENLARGED = 3  # pixels a voxel
SHOWN = 3  # models beside image and truth
GAP = 6  # pixels between panels


def write_pictures(run: SearchRun, folder: Path, workers: int) -> list[Path]:
    """Write the plots of the search's table, and slices of its best trials; returns the files."""
    trials = analysis.load_results(run.campaign.table)
    best = analysis.select(trials, METRIC, minimize=False)
    plots: dict[str, Callable[[], Figure]] = {
        "rungs": lambda: analysis.plots.rungs(trials, METRIC, best),
        "front": lambda: analysis.plots.trial_scatter(trials, METRIC, minimize=False, selected=best),
        "trajectory": lambda: analysis.plots.search_trajectory(trials, METRIC, minimize=False),
        "workers": lambda: analysis.plots.worker_utilisation(trials, workers),
        "outcomes": lambda: analysis.plots.costs_by_outcome(trials),
    }
    written = []
    for name, make in plots.items():
        try:
            made = make()
        except analysis.AnalysisError as error:  # a quick search has too few trials for some
            print(f"no picture {name}: {error}")
            continue
        written.append(_write(folder / f"{name}.png", pixels_of(made)))
    written.append(_write(folder / "slices.png", slices(run, trials)))
    return written


def shrink_page(page: Path, data: Path) -> None:
    """Make the pictures in a report as small as it shows them, and with fewer colours."""
    from PIL import Image

    def smaller(match: re.Match[str]) -> str:
        image = Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB")
        size = round(image.width * SHRUNK), round(image.height * SHRUNK)
        stream = io.BytesIO()
        small = image.resize(size, Image.Resampling.LANCZOS)
        # Maximum coverage: colours of few pixels, such as a line's, are kept.
        small.quantize(PAGE_COLOURS, Image.Quantize.MAXCOVERAGE).save(stream, format="png", optimize=True)
        return data_uri(stream.getvalue())

    text = EMBEDDED.sub(smaller, page.read_text())
    # The page is for other machines too: it names the data as it lies beside the repository.
    write_atomically(page, text.replace(f"{data.resolve()}/", "../shared/data/fib25/").encode())


def slices(run: SearchRun, trials: pd.DataFrame) -> Colours:
    """Side by side the middle slice of the validation box: image, truth, and what the best trials found."""
    data = run.data()
    box = data.validation_box
    z = box.shape[0] // 2
    flat = Box.of((box.offset[0] + z, *box.offset[1:]), (1, *box.shape[1:]))
    image, truth = open_volume(data.image).read(flat)[0], open_volume(data.labels).read(flat)[0]
    panels = [grey(image), overlay(image, truth)]
    ranked = analysis.finished(trials, METRIC).sort_values(METRIC, ascending=False)
    for trial in ranked["trial"].head(SHOWN):
        found = open_volume(str(run.trials_folder / f"{trial:04d}" / SEGMENTATION)).read()[z]
        panels.append(overlay(image, match_ids(found, truth)))
    return side_by_side(panels)


def side_by_side(panels: list[Colours]) -> Colours:
    """Panels [y, x, 3] of one height, enlarged, with white between them."""
    large = [panel.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1) for panel in panels]
    gap = np.full((large[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in large for part in (panel, gap)][:-1], axis=1)


def pixels_of(figure: Figure) -> Colours:
    """A figure as [y, x, 3] uint8."""
    from PIL import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    return np.asarray(Image.open(stream).convert("RGB"))


def _write(path: Path, colours: Colours) -> Path:
    """Write a small PNG.  Raises RuntimeError where it is larger than the project's documents take."""
    from PIL import Image

    Image.fromarray(colours).quantize(COLOURS).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise RuntimeError(f"{path}: has {path.stat().st_size} bytes; expected at most {MOST_BYTES}")
    return path
