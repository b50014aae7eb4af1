"""Volume to connectome on a real Balsam service, by the shipped pipeline made small: killed, and gone on."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import pandas as pd
import pytest
import yaml

from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.core.volumes import content_hash, open_volume
from tests.ensemble.pipeline.test_end_to_end import ENSEMBLE, stage_processes

SHIPPED = Path(__file__).resolve().parents[3] / "pipelines" / "connectome.yml"
KILLED = {"inference", "agglomeration"}

pytestmark = [pytest.mark.slow, pytest.mark.service]


def make_small(folder: Path) -> Path:
    """The shipped pipeline, whose volumes, networks and trainings are made small."""
    pipeline = yaml.safe_load(SHIPPED.read_text())
    steps = pipeline["steps"]
    steps["lesson"]["parameters"]["shape"] = [48, 64, 64]
    steps["tissue"]["parameters"]["shape"] = [32, 64, 64]
    steps["coordinates"]["parameters"]["min_size"] = 200
    network = {"depth": 3, "features": 8, "fov": [13, 13, 13], "deltas": [3, 3, 3]}
    steps["ffn"]["parameters"] |= {"steps": 400, "model": network}
    grid = {"box": {"offset": [0, 0, 0], "shape": [32, 64, 64]}, "shape": [32, 32, 32], "overlap": [0, 24, 24]}
    for step in ("inference", "reconciliation"):
        steps[step]["parameters"]["grid"] = grid
    steps["inference"]["parameters"]["settings"]["min_size"] = 50
    steps["agglomeration"]["parameters"]["block"] = [32, 32, 32]
    steps["synapse_model"]["parameters"]["training"] = {"steps": 8, "warmup_steps": 2, "patch": [16, 16, 16]}
    for step in ("meshes", "skeletons"):
        steps[step]["parameters"] |= {"min_voxels": 100, "shape": [32, 64, 32]}
    for step in ("image_levels", "segmentation_levels"):
        steps[step]["parameters"]["chunks"] = [16, 16, 16]
    file = folder / "small.yml"
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return file


@dataclass(frozen=True)
class Run:
    """What a run that was killed, and the one after it, left."""

    home: Path
    out: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("connectome")
    home, out = folder / "home", folder / "out"
    command = [*ENSEMBLE, "run", str(make_small(folder)), "--home", str(home), "--out", str(out)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline, killed = time.monotonic() + 300, set[str]()
    while killed < KILLED:
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline, f"no job of {KILLED - killed} ran in time"
        for stage in KILLED - killed:
            for process in stage_processes(home, stage)[:1]:
                process.kill()
                killed.add(stage)
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return Run(home, out, subprocess.run(command, capture_output=True, text=True, timeout=400))


def test_killed_jobs_and_a_killed_driver_lose_nothing(run: Run, tmp_path: Path) -> None:
    """The volume of two jobs a step, some of them killed, is that of one job a step."""
    assert run.done.returncode == 0, run.done.stdout + run.done.stderr

    def do(stage: str, **parameters: Any) -> dict[str, Any]:
        found = load_stage(stage)
        return found.run(found.parameters.from_json(parameters), silent).to_dict()

    steps = yaml.safe_load((run.out.parent / "small.yml").read_text())["steps"]
    own = {name: dict(step["parameters"]) for name, step in steps.items()}
    image, model = str(run.out / "tissue" / "image.zarr"), str(run.out / "ffn" / "checkpoint")
    do("inference", **own["inference"] | {"image": image, "model": model, "output": str(tmp_path / "pieces")})
    merged = str(tmp_path / "merged.zarr")
    do("reconciliation", **own["reconciliation"] | {"pieces": str(tmp_path / "pieces"), "output": merged})
    joined = str(tmp_path / "joined.zarr")
    inputs = {"segmentation": merged, "image": image, "model": model}
    do("agglomeration", **own["agglomeration"] | inputs | {"output": joined})
    for ours, alone in (("reconciliation.zarr", merged), ("agglomeration.zarr", joined)):
        assert content_hash(open_volume(str(run.out / ours))) == content_hash(open_volume(alone))
    assert len(set(open_volume(joined).read().ravel().tolist())) > 2, "the network found objects to speak of"


def test_every_stage_of_the_chain_gave_what_it_is_there_for(run: Run) -> None:
    neurons, edges = (pd.read_parquet(run.out / "connectome" / f"{name}.parquet") for name in ("neurons", "edges"))
    graph = networkx.read_graphml(run.out / "connectome" / "graph.graphml")
    assert graph.number_of_edges() == len(edges) and len(neurons) > 0
    assert json.loads((run.out / "meshes" / "info").read_text())["@type"] == "neuroglancer_legacy_mesh"
    assert json.loads((run.out / "skeletons" / "info").read_text())["@type"] == "neuroglancer_skeletons"
    for volume in ("tissue/image.zarr", "agglomeration.zarr"):
        assert (run.out / volume / "1").is_dir(), "a coarser level"


def test_the_report_has_the_whole_chain(run: Run) -> None:
    page = (run.out / "report.html").read_text()
    assert "All 16 steps are done." in page
    assert "the segmentation against the truth" in page.lower() and "data:image/png;base64" in page
    for what in ("scores.vi", "neuron_count", "voxels_per_second", "run_length"):
        assert what in page
    assert f"report:  {run.out / 'report.html'}" in run.done.stdout.replace("\n", "")


def test_any_object_can_be_explained(run: Run) -> None:
    objects = pd.read_parquet(run.out / "agglomeration-agglomeration" / "objects.parquet")
    number = str(int(objects["object"].iloc[0]))
    command = [*ENSEMBLE, "explain", number, "--segmentation", str(run.out / "agglomeration.zarr")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert number in said.stdout
