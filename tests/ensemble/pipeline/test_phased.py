"""A step that several jobs share: the same bytes as from one, and nothing is done twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import zarr

from apps.core.errors import FailureKind, ParameterError, TransientError
from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.core.volumes import Volume, content_hash, open_volume
from ensemble.jobs import Task
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.engine import Engine, Look
from tests.ensemble.pipeline.in_process import StageJobs


def pipeline(parts: int, **parameters: Any) -> Pipeline:
    tissue = {"stage": "phantom", "parameters": {"shape": [24, 32, 32], "seed": 1}}
    levels = {"volume": "${tissue.labels}", "kind": "labels", "chunks": [8, 8, 8], **parameters}
    return Pipeline.from_json(
        {
            "name": "shared",
            "steps": {"tissue": tissue, "levels": {"stage": "multiscale", "parts": parts, "parameters": levels}},
        }
    )


def run(pipeline: Pipeline, folder: Path, jobs: StageJobs) -> Look:
    folder.mkdir(exist_ok=True)
    return Engine(pipeline, folder, jobs).run()


def top_level(look: Look) -> str:
    volume = open_volume(look.plans["tissue"].values["labels"])
    array = volume.array
    group = zarr.open_group(Path(volume.name), mode="r")
    names = sorted(name for name, _ in group.arrays())
    assert array.path == names[0] and len(names) > 1
    return " ".join(content_hash(Volume(name, None, group[name])) for name in names)


def test_the_parts_of_a_step_are_jobs_and_a_last_one_completes_it(tmp_path: Path) -> None:
    jobs = StageJobs()
    shared = run(pipeline(3), tmp_path / "shared", jobs)
    assert shared.settled
    keys = list(jobs.submitted)
    assert jobs.take() == ["tissue/run", *(f"levels/phase-0-{n:04d}" for n in range(3)), "levels/run"]
    assert jobs.tasks[keys[-1]].after[1:] == tuple(keys[1:4])
    assert [jobs.tasks[key].parameters["part"] for key in keys[1:4]] == [{"index": n, "of": 3} for n in range(3)]
    assert shared.plans["levels"].values["complete"] is True

    alone = run(pipeline(1), tmp_path / "alone", StageJobs())
    assert top_level(shared) == top_level(alone)


def test_what_is_done_is_done_by_however_many_parts(tmp_path: Path) -> None:
    jobs = StageJobs()
    run(pipeline(3), tmp_path / "out", jobs)
    jobs.take()
    for parts in (3, 1, 5):
        assert run(pipeline(parts), tmp_path / "out", jobs).settled
        assert jobs.take() == []


@pytest.mark.parametrize("parts", [1, 3])
def test_a_volume_that_is_made_anew_gets_its_levels_again(tmp_path: Path, parts: int) -> None:
    jobs = StageJobs()
    first = run(pipeline(parts), tmp_path / "out", jobs)
    before = top_level(first)
    jobs.take()
    shutil.rmtree(tmp_path / "out" / "tissue")
    again = run(pipeline(parts), tmp_path / "out", jobs)
    assert again.settled
    shares = [f"levels/phase-0-{n:04d}" for n in range(parts)] if parts > 1 else []
    assert jobs.take() == ["tissue/run", *shares, "levels/run"], "it is as much work as before"
    assert top_level(again) == before
    assert run(pipeline(parts), tmp_path / "out", jobs).settled
    assert jobs.take() == []


@pytest.mark.parametrize("parts", [1, 3])
def test_levels_that_a_user_has_put_in_their_place_stay(tmp_path: Path, parts: int) -> None:
    jobs = StageJobs()
    first = run(pipeline(parts), tmp_path / "out", jobs)
    jobs.take()
    volume = first.plans["tissue"].values["labels"]
    stage = load_stage("multiscale")
    other = {"volume": volume, "kind": "labels", "chunks": [8, 8, 8], "levels": 1, "replace": True}
    stage.run(stage.parameters.from_json(other), silent)
    assert run(pipeline(parts), tmp_path / "out", jobs).settled
    assert jobs.take() == []


def test_a_part_that_failed_is_done_again_and_the_last_job_waits_for_it(tmp_path: Path) -> None:
    lost = {"levels/phase-0-0001"}

    def lose(task: Task) -> None:
        if task.key.rpartition("-")[0] in lost:
            raise TransientError("the node went down")

    jobs = StageJobs(before=lose)
    with pytest.raises(AssertionError, match="has a parent that failed"):
        run(pipeline(3), tmp_path / "out", jobs)  # of these jobs: in Balsam, it would wait
    assert [o.failure for o in jobs.ended.values() if o.failure] == [FailureKind.LOST_NODE]
    lost.clear()
    jobs.take()
    assert run(pipeline(3), tmp_path / "out", jobs).settled
    assert jobs.take() == ["levels/phase-0-0001", "levels/run"]


def test_a_step_in_parts_does_not_choose_one(tmp_path: Path) -> None:
    chosen = pipeline(2, part={"index": 0, "of": 2})
    with pytest.raises(ParameterError, match="step levels: the pipeline decides about part; leave it out"):
        Engine(chosen, tmp_path, StageJobs())
