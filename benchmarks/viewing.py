"""Viewing: seconds until a headless browser shows volumes of very different sizes, and a million synapses.

Volumes are cubes of uint8 (image) and uint64 (segmentation) with halved levels down to one chunk; of every level only
the chunks in the middle are written, which is what the viewer shows first, and the others are 0 by Zarr's rules.  The
browser draws in software, and is a new one every time, without a cache.  Time counts from asking for the link to the
moment when the viewer says that all that is in sight is drawn.  Rounds go through the sizes in turn; medians.

Before that, the server is started on the synapses alone: without their index beside the table, and with it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from benchmarks.harness import Figure, benchmark_main
from ensemble.viewing import Stores, ViewServer, open_stores
from ensemble.viewing.kept_index import index_file

SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
READY = "window.viewer && viewer.layerManager.managedLayers.length && viewer.isReady()"
CHUNK, WRITTEN = 64, 4
VOXEL_NM = 8.0
GOAL_S = 10.0  # of the largest, on two cores without a GPU
GOAL_RATIO = 2.0  # largest over smallest
GOAL_READY_S = 2.0  # server with a million synapses, on every start but the first


def find_browser() -> str | None:
    """A Chromium: ENSEMBLE_BROWSER, or what PATH has; None where there is none."""
    given = os.environ.get("ENSEMBLE_BROWSER")
    return given or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def open_browser(width: int = 800, height: int = 600) -> Iterator[Any]:
    """Yield a new playwright browser context that needs neither a display nor a GPU."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_browser(), args=list(SOFTWARE_WEBGL))
        try:
            yield chromium.new_context(viewport={"width": width, "height": height})
        finally:
            chromium.close()


def write_sparse_pyramid(path: Path, side: int, dtype: str = "uint8", written: int = WRITTEN) -> None:
    """A cube of side^3 voxels with halved levels, of which written^3 chunks in the middle are there.

    Of an unsigned byte it is noise, of wider integers blocks of 32^3 voxels of one id each.
    """
    group = zarr.create_group(path, zarr_format=3)
    datasets: list[Any] = []
    level, extent = 0, side
    while True:
        array = group.create_array(str(level), shape=(extent,) * 3, chunks=(CHUNK,) * 3, dtype=dtype)
        first = -(-max(0, extent // 2 - written * CHUNK // 2) // CHUNK) * CHUNK
        part = slice(first, min(extent, first + written * CHUNK))
        array[part, part, part] = _voxels(level, part.stop - part.start, np.dtype(dtype))
        factor = 2**level
        steps: list[Any] = [
            {"type": "scale", "scale": [VOXEL_NM * factor] * 3},
            {"type": "translation", "translation": [VOXEL_NM / 2 * (factor - 1)] * 3},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
        if extent <= CHUNK:
            break
        level, extent = level + 1, -(-extent // 2)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": path.stem, "axes": axes, "datasets": datasets}]}


def _voxels(seed: int, side: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.uint8:
        return np.random.default_rng(seed).integers(50, 200, (side,) * 3, dtype=np.uint8)
    z, y, x = (place // 32 for place in np.ogrid[:side, :side, :side])
    return np.asarray(1 + x + 10 * y + 100 * z, dtype)


def synapse_table(count: int, extent: float, seed: int = 0) -> pd.DataFrame:
    """Synapses at random places in a cube, between a hundredth as many segments; columns as the stage has them."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"id": np.arange(1, count + 1)})
    for axis in "zyx":
        table[axis] = rng.uniform(10, extent - 10, count)
    for end, move in (("pre", -4.0), ("post", 4.0)):
        table[end] = rng.integers(1, max(2, count // 100), count).astype(np.uint64)
        for axis in "zyx":
            table[f"{end}_{axis}"] = table[axis] + move
    for axis in "zyx":
        table[f"direction_{axis}"] = 3**-0.5
    table["confidence"] = rng.uniform(0, 1, count)
    return table


def first_picture(stores: Stores) -> tuple[float, float, int]:
    """Seconds to look at the stores and start the server, seconds to the first picture, files of stores asked for."""
    begin = time.monotonic()
    with ViewServer(open_stores(stores)) as server:
        started = time.monotonic() - begin
        with open_browser() as context:
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            begin = time.monotonic()
            page.goto(server.url)
            page.wait_for_function(READY, timeout=120_000)
            return started, time.monotonic() - begin, sum("/data/" in url for url in asked)


def server_ready(stores: Stores) -> float:
    """Seconds to look at the stores and start the server."""
    begin = time.monotonic()
    with ViewServer(open_stores(stores)):
        return time.monotonic() - begin


def starts(stores: Stores, table: Path, rounds: int, name: str) -> list[Figure]:
    """The server's start without the index of a table of synapses, and with it, turn by turn."""
    first, later = [], []
    for _ in range(rounds):
        index_file(table).unlink(missing_ok=True)
        first.append(server_ready(stores))
        later.append(server_ready(stores))
    size = index_file(table).stat().st_size / 2**20
    return [
        Figure(f"{name}: server ready, {what}", statistics.median(seconds), "s", goal, note=note)
        for what, seconds, goal, note in (
            ("first start", first, None, f"table read, index made and kept, {size:.0f} MiB"),
            (
                "later start",
                later,
                GOAL_READY_S,
                f"{max(later):.2f} s at most in {rounds} rounds; files were in memory",
            ),
        )
    ]


def run(quick: bool) -> list[Figure]:
    """The figures; each round shows every volume once."""
    sides = (2**11, 2**13) if quick else (2**11, 2**13, 2**16)
    rounds, synapses = (1, 60_000) if quick else (5, 1_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        views: dict[str, Stores] = {}
        for side in sides:
            image, segmentation = folder / f"image{side}.zarr", folder / f"ids{side}.zarr"
            write_sparse_pyramid(image, side)
            write_sparse_pyramid(segmentation, side, "uint64")
            views[f"{side}^3 voxels"] = Stores(image=str(image), segmentation=str(segmentation))
        table = folder / "synapses.parquet"
        synapse_table(synapses, sides[0]).to_parquet(table)
        smallest = views[f"{sides[0]}^3 voxels"]
        views[f"{synapses:,} synapses"] = Stores(image=smallest.image, synapses=str(table))
        kept = starts(views[f"{synapses:,} synapses"], table, rounds, f"{synapses:,} synapses")
        measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in views}
        for _ in range(rounds):
            for name, stores in views.items():
                measured[name].append(first_picture(stores))
    figures = []
    for name, rows in measured.items():
        started, shown, files = (statistics.median(column) for column in zip(*rows, strict=True))
        largest = name == f"{sides[-1]}^3 voxels"
        spread = f"{min(row[1] for row in rows):.1f} to {max(row[1] for row in rows):.1f} s in {rounds} rounds"
        note = f"{spread}; {files:.0f} files of the stores were asked for"
        figures.append(Figure(f"{name}: link to first picture", shown, "s", GOAL_S if largest else None, note=note))
        if "synapses" not in name:
            figures.append(Figure(f"{name}: server ready", started, "s", note="stores looked at, objects chosen"))
    shown = [statistics.median(row[1] for row in measured[f"{side}^3 voxels"]) for side in sides]
    figures.append(Figure("first picture, largest over smallest volume", shown[-1] / shown[0], "times", GOAL_RATIO))
    return [*figures, *kept]


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.viewing", __doc__, run))
