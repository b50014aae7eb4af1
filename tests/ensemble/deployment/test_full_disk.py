"""A disk that is full while a deployment runs: one clear message at once, and with room the same bytes."""

from __future__ import annotations

import errno
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from apps.core.boxes import Box
from apps.core.errors import NoRoomError
from apps.core.subvolumes import piece_path
from apps.core.volumes import Array, Volume
from apps.inference import stage as inference_stage
from ensemble.deployment import Deployment, Resources, run_deployment
from ensemble.display import Display
from tests.apps.reconciliation.made import digest
from tests.ensemble.deployment.samples import ThreadJobs, sample_deployment, segment_by_threshold, segmenting_keys

RESOURCES = Resources(nodes=2, node_memory=8 << 30, subvolumes_per_job=1, reconciliation_jobs=2)


def deploy(deployment: Deployment, jobs: ThreadJobs, resources: Resources = RESOURCES) -> dict[str, Any]:
    with Display(Console(file=io.StringIO())) as display:
        return run_deployment(deployment, jobs, display, resources)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What there is no room for: volumes whose path holds one of these words."""
    words: set[str] = set()
    real = Volume.write

    def write(self: Volume, box: Box, data: Array) -> None:
        if any(word in self.name for word in words):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, box, data)

    monkeypatch.setattr(Volume, "write", write)
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    monkeypatch.setattr("ensemble.deployment.run.window_size", lambda processes: 1)
    return words


def times(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("together", [1, 3])
def test_the_deployment_stops_at_once_and_goes_on_with_room(tmp_path: Path, full: set[str], together: int) -> None:
    resources = replace(RESOURCES, subvolumes_per_job=together)
    undisturbed = sample_deployment(tmp_path, output=tmp_path / "undisturbed.zarr")
    deploy(undisturbed, ThreadJobs(tmp_path / "undisturbed-jobs"), resources)
    deployment, jobs = sample_deployment(tmp_path), ThreadJobs(tmp_path / "jobs")
    pieces = [piece_path(tmp_path / "out-deployment" / "pieces", number) for number in range(8)]

    full.update(piece.stem for piece in pieces[4:])
    said = (
        r"000000004\.zarr: cannot be written \(No space left on device\).*; what is finished stays: make room, and run"
    )
    with pytest.raises(NoRoomError, match=said):
        deploy(deployment, jobs, resources)
    assert [piece.is_dir() for piece in pieces] == [True] * 4 + [False] * 4
    assert len(segmenting_keys(jobs)) == {1: 5, 3: 2}[together], "nothing more is begun"
    finished = times(*pieces[:4])

    full.clear()
    full.add("segmentation.zarr")
    jobs.log.clear()
    said = r"reconciliation/segmentation\.zarr: .* cannot be written \(No space left on device\).* make room, and run"
    with pytest.raises(NoRoomError, match=said):
        deploy(deployment, jobs, resources)
    assert len(segmenting_keys(jobs)) == {1: 4, 3: 2}[together], "only what was not finished"
    assert times(*pieces[:4]) == finished
    assert not (tmp_path / "out.zarr").exists()
    finished = times(*pieces, tmp_path / "out-deployment" / "reconciliation" / "solution")

    full.clear()
    jobs.log.clear()
    deploy(deployment, jobs, resources)
    assert segmenting_keys(jobs) == []
    assert times(*pieces, tmp_path / "out-deployment" / "reconciliation" / "solution") == finished
    assert digest(tmp_path / "out.zarr") == digest(tmp_path / "undisturbed.zarr")
