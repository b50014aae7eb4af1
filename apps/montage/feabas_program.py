"""Runs in an environment with Feabas, started as `python feabas_program.py request.json answer.json`.

Its working folder has to be one of its own.  It imports nothing of this project, which need not be installed there.
Settings are Feabas's published defaults for stitching, with the search margin and the narrowest overlap of the caller.

The answer: `matches` [a, b, y, x, confidence] with a < b, `positions` (y, x) that Feabas solved from them, the tiles
only translated (`elastic` asks for its elastic step too), and `seconds` of matching and solving.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

NOT_INSTALLED = 3


def stitch(request: dict[str, Any]) -> dict[str, Any]:
    """Match and solve one section."""
    import numpy as np

    # Feabas reads this from the working folder when it is imported, and refuses its own default.
    settings = Path("configs", "general_configs.yaml")
    settings.parent.mkdir(exist_ok=True)
    settings.write_text("parallel_framework: process\ncpu_budget: 1\n")
    constant, stitching = importlib.import_module("feabas.constant"), importlib.import_module("feabas.stitcher")
    begin = time.perf_counter()
    stitcher = stitching.Stitcher(request["paths"], np.array(request["boxes"]))
    stitcher.dispatch_matchers(
        num_workers=request.get("workers", 1),
        min_overlap_width=request["min_overlap"],
        margin=request["margin"],
        loader_config={"cache_size": 150},
        matcher_config={
            "conf_thresh": 0.33,
            "residue_mode": "threshold",
            "pad": True,
            "sigma": 2.5,
            "coarse_downsample": 0.5,
            "fine_downsample": 1.0,
        },
    )
    stitcher.initialize_meshes([75, 150, 300])
    stitcher.optimize_translation(tol=1e-7, residue_threshold=0.5)
    if request.get("elastic", False) and stitcher.matches:
        stitcher.optimize_elastic(tol=1e-4, residue_mode="huber", residue_len=5)
    stitcher.connect_isolated_subsystem(explode_factor=1.0)
    seconds = time.perf_counter() - begin
    gears = constant.MESH_GEAR_INITIAL, constant.MESH_GEAR_MOVING
    moved = [mesh.estimate_translation(gear=gears) for mesh in stitcher.meshes]
    matches = []
    for (one, other), (xy_one, xy_other, weight) in stitcher.matches.items():
        offset = np.average(xy_one - xy_other, axis=0, weights=np.maximum(weight, 1e-6))
        a, b = int(one), int(other)
        if a > b:
            a, b, offset = b, a, -offset
        matches.append([a, b, float(offset[1]), float(offset[0]), float(np.mean(weight))])
    positions = [[float(xy[1]), float(xy[0])] for xy in moved]
    return {"matches": sorted(matches), "positions": positions, "seconds": seconds}


if __name__ == "__main__":
    if importlib.util.find_spec("feabas") is None:
        sys.exit(NOT_INSTALLED)
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(stitch(json.loads(asked.read_text()))))
