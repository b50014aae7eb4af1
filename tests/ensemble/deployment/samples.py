"""A volume, a network whose weights are set by hand, and jobs that need no Balsam."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np

from apps.core.errors import EnsembleError, FailureKind, kind_of
from apps.core.parameters import write_json
from apps.core.progress import silent
from apps.core.stage import FAILURE_FILE, RESULT_FILE, load_stage, measure_cost
from apps.core.volumes import write_volume
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.hand_set import bright_is_object
from apps.ffn.masks import read_masks
from apps.ffn.segmenter import Counters, Segmentation, SegmentedObject
from apps.reconciliation.settings import IN_THE_MAKING, MANIFEST
from apps.reconciliation.solution import SUMMARY, SolutionRecord, Summary
from ensemble.deployment import Deployment
from ensemble.jobs import Outcome, Task
from ensemble.models import register_model
from tests.apps.test_inference import MODEL

SHAPE = (32, 32, 32)
VOXEL_NM = (10.0, 10.0, 10.0)


def sample_image(folder: Path) -> Path:
    """Four bright tubes along z, 32 x 32 x 32 voxels."""
    rng = np.random.default_rng(3)
    labels = np.zeros(SHAPE, np.uint32)
    corners = [(y, x) for y in (2, 18) for x in (2, 18)]
    for number, (y, x) in enumerate(corners, start=1):
        labels[:, y : y + 12, x : x + 12] = number
    image = np.where(labels > 0, 160, 60) + rng.normal(0, 8, SHAPE)
    write_volume(folder / "image.zarr", image.astype(np.uint8), VOXEL_NM)
    write_volume(folder / "labels.zarr", labels, VOXEL_NM)
    return folder / "image.zarr"


def register_sample(home: Path, name: str, checkpoint: Path) -> None:
    """Register the network of `sample_deployment` in `home`."""
    register_model(
        home,
        name,
        checkpoint,
        row={},
        reason="set by hand",
        inference={"min_size": 50},
        normalisation=(120.0, 40.0),
        voxel_size_nm=VOXEL_NM,
    )


def sample_deployment(folder: Path, **fields: Any) -> Deployment:
    """Eight subvolumes of the sample image, and its four objects."""
    info = CheckpointInfo(model=MODEL, image_mean=120.0, image_std=40.0, step=1, provenance={})
    if not (folder / "checkpoint").exists():
        save_checkpoint(folder / "checkpoint", info, bright_is_object(MODEL), {})
        sample_image(folder)
    values: dict[str, Any] = {
        "model": "demo:1",
        "checkpoint": folder / "checkpoint",
        "inference": {"min_size": 50},
        "image": str(folder / "image.zarr"),
        "output": folder / "out.zarr",
        "subvolume": (16, 16, 16),
        "overlap": (8, 8, 8),
        "trained_voxel_size_nm": VOXEL_NM,
        "speed": 1e5,
    }
    return Deployment(**{**values, **fields})


Hook = Callable[[Task], FailureKind | None]
"""Called before a task; what it returns is how the task fails."""


class ThreadJobs:
    """Does tasks in threads of this process, in any order; remembers them, as Balsam does.

    log: keys in the order in which they were begun.  last_id: of the job that was submitted last.
    """

    def __init__(self, folder: Path, workers: int = 1, seed: int | None = None, hook: Hook = lambda task: None) -> None:
        self.folder, self.hook = folder, hook
        self.log: list[str] = []
        self.most_under_way = self.last_id = 0
        self._random = random.Random(seed) if seed is not None else None
        self._pool = ThreadPoolExecutor(workers)
        self._waiting: list[tuple[int, Task, Future[Outcome]]] = []
        self._ended: dict[str, Outcome] = {}
        self._under_way = 0
        self._lock = threading.Lock()

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        if task.key in self._ended:
            future.set_result(self._ended[task.key])
            return future
        with self._lock:
            self.last_id += 1
            self._waiting.append((self.last_id, task, future))
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
        self._pool.submit(self._one)
        return future

    def outcome(self, key: str) -> Outcome | None:
        return self._ended.get(key)

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._ended.pop(key, None)

    def workdir(self, key: str) -> Path:
        return self.folder / key

    def _one(self) -> None:
        with self._lock:
            place = self._random.randrange(len(self._waiting)) if self._random else 0
            number, task, future = self._waiting.pop(place)
            self.log.append(task.key)
        outcome = replace(self._do(task), job_id=number)
        with self._lock:
            self._ended[task.key] = outcome
            self._under_way -= 1
        future.set_result(outcome)

    def _do(self, task: Task) -> Outcome:
        kind = self.hook(task)
        if kind is not None:
            return Outcome(task.key, 1, None, kind, "made to fail")
        folder = self.workdir(task.key)
        folder.mkdir(parents=True, exist_ok=True)
        stage, begin = load_stage(task.stage), measure_cost().end
        try:
            result = stage.run(stage.parameters.from_json(task.parameters), silent)
        except EnsembleError as error:
            write_json(folder / FAILURE_FILE, {"kind": kind_of(error).value, "message": str(error)})
            return Outcome(task.key, 1, None, kind_of(error), str(error))
        record = {"result": result.to_dict(), "cost": {**measure_cost().to_dict(), "start": begin}}
        write_json(folder / RESULT_FILE, record)
        return Outcome(task.key, 1, record)


class FakePieces:
    """The subvolumes that fake jobs have segmented."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = set(numbers)

    def there(self, number: int) -> bool:
        return number in self.numbers

    def record(self, numbers: Sequence[int]) -> dict[str, Any]:
        return fake_record(numbers)


def fake_record(numbers: Sequence[int]) -> dict[str, Any]:
    """Of a job of these subvolumes, ten voxels and half a second each, or of another job for none."""
    voxels = {"voxels": 10 * len(numbers), "excluded": 0}
    seconds = {"seed_seconds": 0.0, "model_seconds": 0.5 * len(numbers), "other_seconds": 0.0}
    result = {"complete": True, "count": len(numbers), "without_look": 0, **seconds}
    cost = {"start": time.time(), "end": time.time()}
    return {"result": {**result, "masked_read": voxels, "masked_write": voxels}, "cost": cost}


class FakeJobs(ThreadJobs):
    """Jobs of which nothing is left but their records, and the numbers of the subvolumes in `pieces`."""

    def __init__(self, folder: Path, workers: int = 1, seed: int | None = None, hook: Hook = lambda task: None) -> None:
        super().__init__(folder, workers, seed, hook)
        self.pieces = FakePieces()

    def _do(self, task: Task) -> Outcome:
        kind = self.hook(task)
        if kind is not None:
            return Outcome(task.key, 1, None, kind, "made to fail")
        load_stage(task.stage).parameters.from_json(task.parameters)
        numbers = task.parameters.get("numbers", [])
        self.pieces.numbers.update(numbers)
        if task.stage == "reconciliation":
            rules = task.key.split("/")[2].rpartition("-")[2]
            self._reconcile(
                task.parameters["action"], Path(task.parameters["work"]), Path(task.parameters["output"]), rules
            )
        return Outcome(task.key, 1, fake_record(numbers))

    def _reconcile(self, action: str, work: Path, output: Path, rules: str) -> None:
        """The folders that the stage leaves, and what a solution says of its rules."""
        work.mkdir(exist_ok=True)
        making = work / IN_THE_MAKING
        if action in ("solve", "all"):
            making.mkdir(exist_ok=True)
            (work / "solution").mkdir(exist_ok=True)
            nothing = dict.fromkeys(Summary.__struct_fields__, 0) | {"worst_face": None}
            record = SolutionRecord(
                identity="", rules=rules, voxel_size_nm=VOXEL_NM, summary=Summary.from_json(nothing)
            )
            record.save(work / "solution" / SUMMARY)
        if action in ("finish", "all"):
            if output.is_dir():
                output.rmdir()
            making.rename(output)
            (work / MANIFEST).touch()


def segmenting_keys(jobs: ThreadJobs) -> list[str]:
    """Of the inference jobs that were begun."""
    return [key for key in jobs.log if key.split("/")[2].startswith(("inference", "alone", "masked"))]


def segment_by_threshold(
    source: Any, image: Any, boxes: Any, normalisation: Any, settings: Any, options: Any, on_done: Any, *rest: Any
) -> None:
    """In the place of `segment_boxes`: what is bright is an object, without a network."""
    for number, box in enumerate(boxes):
        excluded = read_masks(options.masks, box)
        bright = image.read(box) > 110
        if excluded is not None:
            bright &= ~excluded
        labels = cc3d.connected_components(bright, connectivity=6, out_dtype=np.uint32)
        counts = np.bincount(labels.ravel())
        objects = [SegmentedObject(i, (0, 0, 0), int(counts[i]), 1) for i in range(1, len(counts))]
        counters = Counters(seeds=len(objects), steps=len(objects), model_seconds=1e-3)
        _ = rest[1](number)  # opens the log, which is removed when the subvolume is kept
        on_done(number, Segmentation(labels, objects, counters, [], False, None, excluded))
