"""Tiles to a masked volume on a real Balsam service: driver and jobs killed, gone on, held by a gate, accepted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.core.volumes import content_hash, open_volume
from tests.ensemble.pipeline.microscope import ALIGNMENT, MONTAGE, acquire, list_sections, spoil

ENSEMBLE = [sys.executable, "-m", "ensemble.cli.main"]
SECTIONS, SPOILT = 8, 5
GATE = {"overlap_correlation": 0.6}
NETWORK = {"channels": 8, "poolings": 2}

pytestmark = [pytest.mark.slow, pytest.mark.service]


@dataclass(frozen=True)
class Run:
    """What a run that was killed, the one that went on, and the one after `gate accept` said and left."""

    home: Path
    folder: Path
    killed: list[str]
    held: subprocess.CompletedProcess[str]
    gates: str
    accepted: subprocess.CompletedProcess[str]

    @property
    def out(self) -> Path:
        return self.folder / "out"


def write_pipeline(folder: Path) -> Path:
    train = {"action": "train", "image": "${annotated.image}", "labels": "${annotated.masks}"}
    training = {"steps": 12, "warmup_steps": 2, "patch": 64, "batch_size": 2, "checkpoint_every": 4}
    tissue = {"shape": [16, 96, 96], "seed": 4, "design": {"somata": 2, "vessels": 2, "resin": 6}}
    steps = {
        "montage": {"stage": "montage", "parameters": {"tiles": "./tiles.csv", **MONTAGE}, "gate": GATE},
        "alignment": {
            "stage": "alignment",
            "parameters": {"montage": "${montage.output}", **ALIGNMENT},
            "gate": "none",
            "grain": 2,
        },
        "annotated": {"stage": "phantom", "parameters": tissue},
        "mask_model": {"stage": "masking", "parameters": {**train, "training": {**training, "network": NETWORK}}},
        "masking": {
            "stage": "masking",
            "parameters": {"image": "${alignment.aligned}", "model": "${mask_model.model}"},
            "gate": "none",
            "grain": 4,
        },
    }
    file = folder / "block.yml"
    file.write_text(yaml.safe_dump({"name": "block", "steps": steps}, sort_keys=False))
    return file


def stage_processes(home: Path, stage: str) -> list[psutil.Process]:
    """Processes that run the stage in jobs of this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if f"apps.{stage}" in process.cmdline() and str(home) in process.cwd():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("block")
    home = folder / "home"
    source = acquire(folder)
    list_sections(source, folder / "some.csv", SECTIONS)
    (folder / "some.csv").replace(folder / "tiles.csv")
    spoil(folder / "tiles.csv", SPOILT)
    file = write_pipeline(folder)
    command = [*ENSEMBLE, "run", str(file), "--home", str(home), "--out", str(folder / "out")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline, killed = time.monotonic() + 120, list[str]()
    while "alignment" not in killed:
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline, "no job of the alignment ran in time"
        for stage in {"montage", "alignment"} - set(killed):
            for process in stage_processes(home, stage)[:1]:
                process.kill()
                killed.append(stage)
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    held = subprocess.run(command, capture_output=True, text=True, timeout=240)
    gate = [*ENSEMBLE, "gate"]
    listed = subprocess.run([*gate, "ls", "block", "--home", str(home)], capture_output=True, text=True)
    accept = [*gate, "accept", "block", "montage", "--sections", str(SPOILT), "--reason", "a test"]
    subprocess.run([*accept, "--home", str(home)], check=True, capture_output=True)
    accepted = subprocess.run([*command, "--keep-service"], capture_output=True, text=True, timeout=240)
    yield Run(home, folder, killed, held, listed.stdout + listed.stderr, accepted)
    subprocess.run([*ENSEMBLE, "service", "stop", "--home", str(home)], check=False, capture_output=True)


def wanted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without jobs that were taken back: the killed driver had planned them for some of a group's sections, as the
    others were not there yet, and the next driver has had the whole group done."""
    units = [str(row["tags"]["task"]).rpartition("-")[0] for row in rows]
    whole = [unit for row, unit in zip(rows, units, strict=True) if row["state"] == "JOB_FINISHED"]
    return [
        row
        for row, unit in zip(rows, units, strict=True)
        if row["state"] == "JOB_FINISHED" or not any(other.startswith(f"{unit}-") for other in whole)
    ]


def jobs_of(run: Run) -> list[dict[str, Any]]:
    """The campaign's jobs, as the service that still runs has them."""
    from ensemble import service
    from ensemble.job_requests import fetch_jobs

    service.connect(run.home)
    uid = json.loads((run.out / "identity.json").read_text())["uid"]
    return [dict(row) for row in fetch_jobs({"tags": [f"campaign_uid:{uid}"]})]


def by_hand(run: Run, held: tuple[int, ...]) -> Path:
    """The same, with the stages alone, each in one go; returns its folder."""
    folder = run.folder / f"by-hand-{len(held)}"

    def do(stage: str, **parameters: Any) -> None:
        found = load_stage(stage)
        found.run(found.parameters.from_json(parameters), silent)

    do("montage", tiles=str(run.folder / "tiles.csv"), output=str(folder / "montage"), **MONTAGE)
    do("alignment", montage=str(folder / "montage"), output=str(folder / "alignment"), held=list(held), **ALIGNMENT)
    return folder


def test_killed_jobs_and_a_killed_driver_lose_nothing(run: Run) -> None:
    assert sorted(run.killed) == ["alignment", "montage"]
    assert run.accepted.returncode == 0, run.accepted.stdout + run.accepted.stderr
    folder = by_hand(run, ())
    for place in ("montage/sections/00003.zarr", "alignment/aligned.zarr"):
        assert content_hash(open_volume(str(run.out / place))) == content_hash(open_volume(str(folder / place)))


def test_the_gate_stops_one_section_says_why_and_the_others_go_on(run: Run) -> None:
    output = run.held.stdout + run.held.stderr
    assert run.held.returncode == 4, output
    assert f"montage: section {SPOILT} held for overlap_correlation" in output
    assert f"ensemble gate accept block montage --sections {SPOILT}" in output
    listed = " ".join(run.gates.replace("│", " ").split())  # the table breaks lines
    assert f"montage {SPOILT} held overlap_correlation" in listed and "expected" in listed


def test_masks_lie_over_the_aligned_volume(run: Run) -> None:
    aligned, masks = (open_volume(str(run.out / place)) for place in ("alignment/aligned.zarr", "masking/masks.zarr"))
    assert masks.shape == aligned.shape and aligned.shape[0] == SECTIONS
    found, image = masks.read(), aligned.read()
    assert (found[image == 0] == 3).all() and found.max() <= 3
    assert image[SPOILT].any(), "the accepted section is there"


def test_quality_is_written_for_every_section_of_every_step(run: Run) -> None:
    from analysis import load_quality_table

    table = load_quality_table(run.out / "quality.csv")
    counts = table.groupby("step")["section"].nunique()
    assert dict(counts) == {"montage": SECTIONS, "alignment": SECTIONS, "masking": SECTIONS}
    states = table.drop_duplicates(["step", "section"]).set_index(["step", "section"])["state"]
    assert states["montage", SPOILT] == "accepted" and set(states) == {"passed", "accepted"}
    page = (run.out / "quality.html").read_text()
    assert "data:image/png;base64" in page and "overlap correlation" in page


def test_jobs_have_tags_and_parents_and_what_was_done_is_not_done_again(run: Run) -> None:
    rows = {row["tags"]["task"]: row for row in wanted(jobs_of(run))}
    assert {row["state"] for row in rows.values()} == {"JOB_FINISHED"}
    assert {row["tags"]["step"] for row in rows.values()} == {
        "montage",
        "alignment",
        "annotated",
        "mask_model",
        "masking",
    }
    units = [key.rpartition("-")[0] for key in rows]
    assert sorted(unit for unit in units if unit.startswith("montage/")) == [
        f"montage/{n:05d}" for n in range(SECTIONS)
    ]
    # Of the sections before the accepted one nothing was matched again.
    assert units.count("alignment/match-00000-00001") == 1 and units.count("alignment/match-00004") == 1
    assert units.count("alignment/solve") == 2
    number = {row["id"]: key for key, row in rows.items()}
    match = next(key for key in rows if key.startswith("alignment/match-00004-00005"))
    parents = {number[parent].rpartition("-")[0] for parent in rows[match]["parent_ids"]}
    assert parents == {f"montage/{n:05d}" for n in range(6)}


def test_jobs_that_were_killed_were_started_again_and_say_so(run: Run) -> None:
    rows = jobs_of(run)
    assert sum(bool(row["data"].get("interruptions")) for row in rows) >= len(run.killed)
    assert all(row["data"]["record"]["result"] for row in wanted(rows))
