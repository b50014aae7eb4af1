"""Feabas aligns the sections that `benchmarks.alignment` gives it; runs under the Python of an environment with Feabas.

    python alignment_feabas.py TASK.npz ANSWER.npz

Task: `images` uint8 [n, y, x], `spacing` pixels, `points` float64 [n, m, 2] (y, x) of each section (NaN where there are
fewer).  Answer: `placed`, where the alignment puts them, `seconds` of matching and solving, without imports, and how
many pairs `matched`.  Each section is matched with the two before it: features, then block matching on meshes, as
Feabas's own programs do; then all sections are relaxed at once.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import numpy as np

NEIGHBOURS = 2


def main(task_file: str, answer_file: str) -> None:
    # As installed from the package registry it has no configuration, and its default for this is not accepted.
    _feabas("config").general_settings()["parallel_framework"] = "thread"
    constant, mesh, optimizer = _feabas("constant"), _feabas("mesh"), _feabas("optimizer")
    for name in ("common", "dal", "matcher", "thumbnail"):
        _feabas(name)
    task = np.load(task_file)
    images, spacing, points = task["images"], float(task["spacing"]), task["points"]
    begin = time.perf_counter()
    count, height, width = images.shape
    box = (0, 0, width, height)
    meshes = [mesh.Mesh.from_bbox(box, cartesian=True, mesh_size=spacing, uid=n) for n in range(count)]
    stack = optimizer.SLM([each.copy() for each in meshes], stiffness_lambda=0.5)
    stack.meshes[0].lock()  # without one that stays its solver does not come to an end
    matched = 0
    for b in range(1, count):
        for a in range(max(0, b - NEIGHBOURS), b):
            found = match_pair(images[a], images[b], meshes[a].copy(), meshes[b].copy(), spacing)
            if found is None:
                print(f"sections {a} and {b}: no match", file=sys.stderr)
                continue
            matched += 1
            xy0, xy1, weight = found
            initial = (constant.MESH_GEAR_INITIAL, constant.MESH_GEAR_INITIAL)
            stack.add_link_from_coordinates(a, b, xy0, xy1, gear=initial, weight=weight, check_duplicates=False)
    moving, fixed = constant.MESH_GEAR_MOVING, constant.MESH_GEAR_FIXED
    stack.optimize_affine_cascade(target_gear=moving)
    stack.anneal(gear=(moving, fixed), mode=constant.ANNEAL_CONNECTED_RIGID)
    stop = {"early_stop_thresh": 1.0, "chances": 20, "eval_step": 10}
    stack.optimize_elastic(target_gear=moving, tol=1e-7, atol=1e-3, callback_settings=stop)
    seconds = time.perf_counter() - begin
    placed = np.full(points.shape, np.nan)
    for section, solved in enumerate(stack.meshes):
        there = np.isfinite(points[section, :, 0])
        xy = points[section, there, ::-1]
        triangle, shares = solved.cart2bary(xy, constant.MESH_GEAR_INITIAL, tid=None)
        placed[section, there] = solved.bary2cart(triangle, shares, moving)[:, ::-1]
    np.savez(answer_file, placed=placed, seconds=np.array(seconds), matched=np.array(matched))


def match_pair(first: Any, second: Any, mesh0: Any, mesh1: Any, spacing: float) -> tuple[Any, Any, Any] | None:
    """Points (x, y) of both sections and their weights; None where there is no match."""
    coarse = _feabas("thumbnail").match_two_thumbnails_LRadon(first, second)
    if coarse is None:
        return None
    mesh0.uid, mesh1.uid = 0.0, 1.0
    loader = _feabas("dal").StreamLoader
    xy0, xy1, weight, _ = _feabas("matcher").section_matcher(
        mesh0,
        mesh1,
        loader(first, fillval=0),
        loader(second, fillval=0),
        initial_matches=_feabas("common").Match(*coarse[:3]),
        spacings=[2 * spacing, spacing],
    )
    return None if xy0 is None else (xy0, xy1, weight)


def _feabas(module: str) -> Any:
    return importlib.import_module(f"feabas.{module}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
