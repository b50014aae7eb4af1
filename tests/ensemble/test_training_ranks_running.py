"""A training of several ranks as a Balsam job: made with Balsam's own Job, as a user or another program would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.ffn.checkpoint import load_checkpoint
from apps.training.stage import TrainingParameters
from ensemble import service, sites
from ensemble.service.processes import wait_until
from tests.apps.ffn.tiny import MEAN, STD, TINY, TinyData, tiny_data
from tests.conftest import RunningService
from tests.rank_runs import needs_horovod

pytestmark = [pytest.mark.service, *needs_horovod]

PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def app_id(balsam_service: RunningService) -> Iterator[int]:
    service.connect(balsam_service.home)
    from apps.definitions import register

    ids = register(balsam_service.site.id)
    sites.submit_batch_job(balsam_service.site, 2, 30)
    yield ids["training"]
    sites.stop_launchers(balsam_service.site)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("data"))


def training_job(app_id: int, workdir: str, data: TinyData, output: Path, nodes: int = 1, **fields: Any) -> Any:
    """A job of two ranks, on one node or on two."""
    from balsam.api import Job

    values: dict[str, Any] = {
        "volumes": data.volumes,
        "output": str(output),
        "model": TINY,
        "learning_rate": 0.01,
        "batch_size": 2,
        "steps": 10,
        "checkpoint_every": 5,
        "image_mean": MEAN,
        "image_std": STD,
    }
    parameters = TrainingParameters(**{**values, **fields}).to_dict()
    job = Job(
        workdir=Path(workdir),
        app_id=app_id,
        tags={"campaign": "ranks"},
        data={"parameters": parameters},
        num_nodes=nodes,
        ranks_per_node=2 // nodes,
        threads_per_rank=1,
    )
    job.save()
    return job


def wait_for_end(job: Any) -> None:
    def ended() -> bool:
        job.refresh_from_db()
        return job.state in ("JOB_FINISHED", "FAILED")

    assert wait_until(ended, PATIENCE_S, 0.2), f"the job is {job.state}"


@dataclass(frozen=True)
class Resumed:
    """A job of two ranks on one node that has ended, and how it was when one of its ranks was killed.

    Attributes:
        job, workdir, output: of Balsam, its folder there, and the training's.
        victims: process ids of its ranks.
        others_ended: whether those that were not killed ended too.
        step_when_killed: of the checkpoint that was there.
    """

    job: Any
    workdir: Path
    output: Path
    victims: list[int]
    others_ended: bool
    step_when_killed: int


STEPS = 100


@pytest.fixture(scope="module")
def resumed(
    balsam_service: RunningService, app_id: int, data: TinyData, tmp_path_factory: pytest.TempPathFactory
) -> Resumed:
    output = tmp_path_factory.mktemp("resumed") / "out"
    job = training_job(app_id, "ranks/killed", data, output, steps=STEPS, checkpoint_every=20)
    # Who they are is known beforehand: from its first checkpoint to its end a training of so few steps takes a second.
    assert wait_until(lambda: len(ranks_in("ranks/killed")) == 2, PATIENCE_S)
    victims = ranks_in("ranks/killed")
    model = output / "checkpoint" / "model.json"
    assert wait_until(model.exists, PATIENCE_S, 0.01)
    os.kill(victims[0], signal.SIGKILL)
    others_ended = wait_until(lambda: not set(victims) & set(ranks_in("ranks/killed")), 20.0)
    step = json.loads(model.read_text())["step"]
    wait_for_end(job)
    workdir = balsam_service.site.path / "data" / "ranks" / "killed"
    assert job.state == "JOB_FINISHED", (workdir / "job.out").read_text()
    return Resumed(job, workdir, output, victims, others_ended, step)


def test_ranks_per_node_is_the_number_of_ranks(resumed: Resumed) -> None:
    record = resumed.job.data["record"]
    assert record["ranks"] == record["result"]["ranks"] == len(resumed.victims) == 2
    assert record["result"]["steps"] == STEPS
    assert load_checkpoint(str(resumed.output / "checkpoint")).step == STEPS
    assert json.loads((resumed.workdir / "result.json").read_text()) == record


def test_a_killed_rank_ends_the_others_and_the_job_goes_on_from_its_checkpoint(resumed: Resumed) -> None:
    assert resumed.others_ended
    assert 0 < resumed.step_when_killed < STEPS
    assert resumed.job.data["attempts"] == 2
    assert resumed.job.data["record"]["result"]["steps"] == STEPS


def test_a_training_that_diverges_on_its_ranks_is_not_run_again(app_id: int, data: TinyData, tmp_path: Path) -> None:
    """Of two nodes, with a rank on each."""
    # Every second step ends a row of the learning curve, which is where an exploded loss is seen.
    diverging: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 10.0, "clip": None, "curve_every": 2}
    job = training_job(app_id, "ranks/diverged", data, tmp_path / "out", nodes=2, **diverging)
    assert wait_until(lambda: len(ranks_in("ranks/diverged")) == 2, PATIENCE_S)
    wait_for_end(job)
    assert job.state == "FAILED"
    assert job.data["failure"]["kind"] == "diverged"
    assert "attempts" not in job.data


def ranks_in(workdir: str) -> list[int]:
    """Process ids of the training's ranks in this work directory, the launcher apart."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "apps.training" in words and "python" in Path(words[0]).name and process.cwd().endswith(workdir):
                found.append(process.pid)
    return found
