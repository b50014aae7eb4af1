"""Igneous does the work that `benchmarks.morphology` gives it; runs under the Python of an environment with igneous.

    python morphology_igneous.py TASK.json ANSWER.json

Task: `kind` (meshes, skeletons, image or labels), `layer` (folder of a precomputed volume; written to), and of the
first two `shape` (xyz voxels a task) and their settings, of the others `levels`.  Answer: `seconds` and `cpu_seconds`
from planning the tasks to the last file, without imports, in this one process.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(task_file: str, answer_file: str) -> None:
    task = json.loads(Path(task_file).read_text())
    creation: Any = importlib.import_module("igneous.task_creation")
    local_queue: Any = importlib.import_module("taskqueue").LocalTaskQueue

    def work(tasks: Any) -> None:
        queue = local_queue(parallel=1, progress=False)
        queue.insert(tasks)
        queue.execute()

    cloud: Any = importlib.import_module("cloudvolume")
    layer = f"file://{task['layer']}"
    begin, cpu = time.perf_counter(), time.process_time()
    if task["kind"] == "meshes":
        work(
            creation.create_meshing_tasks(
                layer,
                mip=0,
                shape=task["shape"],
                max_simplification_error=task["max_error_nm"],
                mesh_dir="meshes",
                spatial_index=False,
                compress=None,
            )
        )
        work(creation.create_mesh_manifest_tasks(layer, magnitude=1, mesh_dir="meshes"))
    elif task["kind"] == "skeletons":
        work(
            creation.create_skeletonizing_tasks(
                layer,
                mip=0,
                shape=cloud.lib.Vec(*task["shape"]),
                teasar_params=task["teasar"],
                dust_threshold=task["dust_voxels"],
                spatial_index=False,
            )
        )
        work(
            creation.create_unsharded_skeleton_merge_tasks(
                layer, magnitude=1, dust_threshold=task["min_length_nm"], tick_threshold=task["tick_nm"]
            )
        )
    else:
        work(
            creation.create_downsampling_tasks(
                layer, mip=0, num_mips=task["levels"], factor=(2, 2, 2), compress=task["compress"]
            )
        )
    seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    Path(answer_file).write_text(json.dumps({"seconds": seconds, "cpu_seconds": used}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
