"""`ensemble deploy`, with everything that needs a service replaced."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from apps.core.errors import DataError, ParameterError
from apps.core.volumes import write_volume
from apps.ffn.masks import MaskParameters
from apps.inference import stage as inference_stage
from ensemble.cli.deploy import deploy
from ensemble.cli.options import MaskType
from ensemble.deployment import KeptOut, kept_out
from ensemble.deployment.request import COST_COLUMN, speed_of
from ensemble.deployment.table import seam_text
from ensemble.models import Model
from tests.ensemble.deployment.samples import SHAPE, VOXEL_NM, ThreadJobs, sample_deployment, segment_by_threshold


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a small deployment of the registered model `demo`, whose jobs are done in this process."""
    deployment = sample_deployment(tmp_path)
    model = Model(
        name="demo",
        version=1,
        created=0.0,
        checksum="",
        voxel_size_nm=VOXEL_NM,
        image_mean=120.0,
        image_std=40.0,
        inference={"min_size": 50},
        row={COST_COLUMN: 2.0},
        reason="",
    )
    for name, replacement in {
        "ensemble.models.find_model": lambda home, reference: model,
        "ensemble.deployment.request.checkpoint_of": lambda home, model: deployment.checkpoint,
        "ensemble.session.check_site": lambda home, site, workers: None,
        "ensemble.session.open_session": lambda *_, **__: contextlib.nullcontext(ThreadJobs(tmp_path / "jobs")),
    }.items():
        monkeypatch.setattr(name, replacement)
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    monkeypatch.chdir(tmp_path)
    return ["demo", "--home", str(tmp_path / "home"), "--image", "image.zarr", "--out", "out.zarr"]


def run(arguments: list[str]) -> str:
    return CliRunner().invoke(deploy, arguments, catch_exceptions=False).output


def test_a_dry_run_prints_plan_and_cost_and_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    text = run([*arguments, "--dry-run", "--speed", "1000"])
    for line in (
        "model           demo:1",
        "model's speed   1 k voxels/s in a process",
        "predicted cost  0.0108 node-hours",
    ):
        assert line in text
    assert "139 k voxels/s" in run([*arguments, "--dry-run"])  # the trial's two node-hours for a gigavoxel
    assert not (tmp_path / "home").exists()
    assert not list(tmp_path.glob("out*"))


def test_a_budget_is_refused_and_names_the_figure(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"predicted are 0\.0108 node-hours, above the budget of 0\.01") as info:
        run([*arguments, "--site", "s", "--speed", "1000", "--budget", "0.01"])
    assert info.value.exit_code == 2
    assert not list(tmp_path.glob("out*"))


def test_other_voxels_are_refused_unless_they_are_wanted(arguments: list[str], tmp_path: Path) -> None:
    write_volume(tmp_path / "image.zarr", np.zeros(SHAPE, np.uint8), (40.0, 10.0, 10.0))
    with pytest.raises(DataError, match="--any-voxel-size"):
        run([*arguments, "--dry-run"])
    assert "40 x 10 x 10 nm" in run([*arguments, "--dry-run", "--any-voxel-size"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--node-memory", value) for value in ("nan", "inf", "1e300", "0", "-1")),
        *(("--speed", value) for value in ("nan", "0", "-1")),
        ("--threads", "1025"),
    ],
)
def test_a_number_that_is_none_is_refused(arguments: list[str], option: str, value: str) -> None:
    with pytest.raises(ParameterError, match=rf"{option[2:].replace('-', ' ')} .*: expected"):
        run([*arguments, "--dry-run", option, value])


@pytest.mark.parametrize("given", [["--site", "s"], ["demo", "--image", "i.zarr", "--out", "o.zarr"]])
def test_what_is_missing_is_named(given: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(deploy, [*given, "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert ("MODEL, --image, --out: missing" if "--site" in given else "--site: missing") in done.output


def test_a_deployment_with_masks_says_what_they_kept_out_and_is_verified(arguments: list[str], tmp_path: Path) -> None:
    excluded = np.zeros(SHAPE, np.uint8)
    excluded[:, :, 16:] = 2
    write_volume(tmp_path / "m.zarr", excluded, VOXEL_NM)
    small = ["--subvolume", "16,32,16", "--overlap", "8,8,8", "--reconciliation-jobs", "2"]
    text = run([*arguments, *small, "--site", "s", "--mask", "m.zarr=1,2"])
    assert "(2 objects)" in text
    assert "complete: all 4 subvolumes, checksums in" in text
    seams = str(tmp_path / "out-deployment/reconciliation/solution/seams.parquet")
    line = next(line for line in text.splitlines() if line.startswith("seams: "))
    assert line.startswith("seams: 100 % of the voxels that both sides of 6 faces fill agree, at worst 100 %, between")
    assert line.endswith(f"; all in {seams}") and Path(seams).is_file()
    assert "masks: 16384 of 32768 voxels kept out (50.0 %)" in text
    assert "predicted" in text
    assert "complete, every write box as in" in run(["--verify", "out.zarr"])


def test_the_rule_for_links_is_an_option_and_what_changes_is_said(arguments: list[str], tmp_path: Path) -> None:
    small = [*arguments, "--subvolume", "16,32,32", "--overlap", "8,8,8", "--site", "s"]
    first = run(small)
    assert "links           at least 100 voxels and 30 % of the larger, each the other's largest\n" in first
    assert "(4 objects)" in first and "links are other ones" not in first
    rule = ["--min-overlap-voxels", "5000", "--min-overlap-fraction", "0.5", "--any-maximum"]
    changed = run([*small, *rule])
    assert "voxels and 50 % of the larger, whether the largest or not\n" in changed
    assert "links are other ones now: min overlap voxels 100 -> 5000, min overlap fraction 0.3 -> 0.5" in changed
    assert "(8 objects)" in changed
    again = run(small)
    assert "at least 5000 voxels" in again and "links are other ones" not in again
    (tmp_path / "cut.csv").write_text("a,b\n1,16777217\n")
    assert "cut none -> 1 pair" in run([*small, "--cut", "cut.csv", "--dry-run"])
    assert "cut" not in run([*small, "--dry-run"]), "a dry run changes nothing"


def test_what_is_said_of_seams() -> None:
    face = {"worst_agreement": 0.5, "worst_face": [0, 3], "worst_box": {"offset": [0, 0, 4], "shape": [8, 8, 2]}}
    seams = {"file": "s.parquet", "faces": 12, "agreement": 0.99998, **face}
    assert seam_text(seams) == (
        "99.99 % of the voxels that both sides of 12 faces fill agree, at worst 50 %, between subvolumes 0 and 3 "
        "(0:8,0:8,4:6); all in s.parquet"
    )
    nothing = dict.fromkeys(face)
    assert "none of which has voxels" in seam_text({**seams, **nothing, "agreement": None})
    assert seam_text({**seams, **nothing, "agreement": None, "faces": 0}) == "none, one subvolume"


@pytest.mark.parametrize(("row", "speed"), [({COST_COLUMN: 1.0}, 1e9 / 3600), ({}, None), ({COST_COLUMN: None}, None)])
def test_the_speed_of_a_model_is_that_of_its_trial(row: dict[str, Any], speed: float | None) -> None:
    model = Model(
        name="m",
        version=1,
        created=0.0,
        checksum="",
        voxel_size_nm=VOXEL_NM,
        image_mean=0.0,
        image_std=1.0,
        inference={},
        row=row,
        reason="",
    )
    assert speed_of(model) == (None if speed is None else pytest.approx(speed))


def test_what_masks_kept_out_is_summed() -> None:
    records = [
        {"result": {"masked_write": {"voxels": 600, "excluded": 60}, "count": 2, "without_look": 1}},
        {"result": {"masked_write": {"voxels": 400, "excluded": 65}, "count": 1, "without_look": 0}},
    ]
    counted = kept_out(records)
    assert counted == KeptOut(voxels=1000, excluded=125, subvolumes=3, without_look=1)
    assert str(counted) == "125 of 1000 voxels kept out (12.5 %), 1 of 3 subvolumes without a look"


@pytest.mark.parametrize(
    ("text", "volume", "values"),
    [
        ("masks.zarr", "masks.zarr", None),
        ("masks.zarr=1,3", "masks.zarr", (1, 3)),
        ("em.h5:tissue=0", "em.h5:tissue", (0,)),
        ("run=3/masks.zarr", "run=3/masks.zarr", None),
        ("run=3/masks.zarr=2", "run=3/masks.zarr", (2,)),
    ],
)
def test_a_mask_on_the_command_line(text: str, volume: str, values: tuple[int, ...] | None) -> None:
    assert MaskType().convert(text, None, None) == MaskParameters(volume=volume, values=values)


@pytest.mark.parametrize("text", ["masks.zarr=", "masks.zarr=vessel", "=1"])
def test_a_mask_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"masks\.zarr=1,2"):
        MaskType().convert(text, None, None)
