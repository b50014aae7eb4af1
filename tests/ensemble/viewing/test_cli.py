"""`ensemble view`, as a process: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.precomputed.stage import PrecomputedParameters
from apps.precomputed.stage import run as write_precomputed
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.cli.main import main
from ensemble.viewing import Stores
from tests.ensemble.test_end_to_end import heed_interrupts
from tests.ensemble.viewing.samples import SHAPE, VOXEL, write_stores


def run_view(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["view", *arguments])
    return int(end.value.code or 0)


def test_wrong_store_ends_before_anything_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_view("--image", str(tmp_path / "gone.zarr")) == 2
    assert "gone.zarr: no such volume" in capsys.readouterr().err
    assert run_view("--home", str(tmp_path), "demo") == 2
    assert "no such campaign" in capsys.readouterr().err
    assert run_view() == 2
    assert "nothing to view" in capsys.readouterr().err
    assert run_view(str(tmp_path / "gone.json")) == 2
    assert "gone.json: no such file" in capsys.readouterr().err


def test_view_is_served_until_it_is_interrupted(tmp_path: Path) -> None:
    stores = write_stores(tmp_path)
    command = [sys.executable, "-m", "ensemble.cli.main", "view", "--image", "image.zarr", "--offset", "1,2,3"]
    command += ["--segmentation", "objects.zarr", "--save", "view.json", "--state", "state.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    try:
        assert process.stdout is not None
        url = next(line.strip() for line in process.stdout if line.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(url) as response:
            assert response.status == 200 and b"neuroglancer" in response.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    saved = Stores.load(tmp_path / "view.json")
    assert (saved.image, saved.segmentation, saved.offset) == (stores.image, stores.segmentation, (1, 2, 3))
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["layers"][0]["source"]["url"].startswith("zarr3://" + url.removesuffix("/open"))


def test_saved_view_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stores(tmp_path).save(tmp_path / "view.json")
    write_volume(tmp_path / "other.zarr", np.ones((4, 4, 4), np.uint8), (8.0, 8.0, 8.0))
    monkeypatch.setattr("ensemble.viewing.ViewServer.wait", lambda server: None)
    again = ["--image", str(tmp_path / "other.zarr"), "--save", str(tmp_path / "again.json")]
    assert run_view(str(tmp_path / "view.json"), *again) == 0
    saved = Stores.load(tmp_path / "again.json")
    assert run_view(str(tmp_path), *again) == 0  # the folder of a pipeline's results, which holds it
    assert Stores.load(tmp_path / "again.json") == saved
    assert saved.image == str(tmp_path / "other.zarr") and saved.meshes == str(tmp_path / "meshes")


def test_a_folder_without_results_is_named_and_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", str(tmp_path / "home"))
    write_volume(tmp_path / "ids.zarr", np.ones((4, 4, 4), np.uint8), (8.0, 8.0, 8.0))
    for name, message in (
        ("none/there", "no such folder; give a pipeline's folder, a campaign's name, or a VIEW.json"),
        ("", "holds no results to look at; expected the folder of a pipeline"),
        ("ids.zarr", f"is a store; say what it is, for example: ensemble view --image {tmp_path / 'ids.zarr'}"),
    ):
        assert run_view(str(tmp_path / name), *home) == 2
        assert message in capsys.readouterr().err


def test_a_campaign_is_found_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_campaign(tmp_path / "home", CampaignPlan(name="demo"), tmp_path / "out")
    assert run_view(str(tmp_path / "out"), "--home", str(tmp_path / "home")) == 2
    assert "campaign demo: none of its jobs has made a volume" in capsys.readouterr().err


def test_a_folder_of_another_home_is_not_taken_for_the_campaign_of_that_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for home, out in (("home", "out"), ("other", "elsewhere")):
        create_campaign(tmp_path / home, CampaignPlan(name="demo"), tmp_path / out)
    assert run_view(str(tmp_path / "elsewhere"), "--home", str(tmp_path / "home")) == 2
    said = capsys.readouterr().err
    assert f"elsewhere: is not the folder of the campaign demo of {tmp_path / 'home'}" in said
    assert str(tmp_path / "out") in said


def test_another_segmentation_takes_its_meshes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = write_stores(tmp_path)
    stores.save(tmp_path / "view.json")
    (tmp_path / "report.html").write_text("how")
    made = {"of": {"segmentation": stores.segmentation}}
    for what in ("meshes", "skeletons"):
        (tmp_path / what / "provenance.json").write_text(json.dumps(made))
    write_volume(tmp_path / "base.zarr", np.full(SHAPE, 9, np.uint64), VOXEL)
    monkeypatch.setattr("ensemble.viewing.ViewServer.wait", lambda server: None)
    again = ["--segmentation", str(tmp_path / "base.zarr"), "--save", str(tmp_path / "again.json")]
    assert run_view(str(tmp_path), *again) == 0
    saved, said = Stores.load(tmp_path / "again.json"), capsys.readouterr()
    assert saved.meshes is None and saved.skeletons is None and saved.report == str(tmp_path / "report.html")
    assert "note: meshes and skeletons of the saved view are not shown" in said.err
    assert "the synapses seem to be of another segmentation" in said.err
    assert "how it was made: http://127.0.0.1:" in said.out


@pytest.mark.parametrize(("more", "offset"), [((), (0, 0, 0)), (("--offset", "0,0,2"), (0, 0, 2))])
def test_the_offset_of_a_saved_view_is_of_its_own_segmentation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    offset: tuple[int, int, int],
) -> None:
    view, again = str(tmp_path / "view.json"), str(tmp_path / "again.json")
    stores = write_stores(tmp_path)
    Stores(image=stores.image, segmentation=stores.segmentation, offset=(0, 0, 5)).save(Path(view))
    write_volume(tmp_path / "other.zarr", np.full(SHAPE, 9, np.uint64), VOXEL)
    monkeypatch.setattr("ensemble.viewing.ViewServer.wait", lambda server: None)
    assert run_view(view, "--segmentation", str(tmp_path / "other.zarr"), "--save", again, *more) == 0
    assert Stores.load(Path(again)).offset == offset
    assert ("offset of the saved view, 0,0,5, is not taken" in capsys.readouterr().err) == (not more)
    assert run_view(view, "--segmentation", str(stores.segmentation), "--save", again) == 0
    assert Stores.load(Path(again)).offset == (0, 0, 5)


def test_a_precomputed_copy_keeps_what_is_of_its_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores, copy = write_stores(tmp_path), tmp_path / "copy"
    stores.save(tmp_path / "view.json")
    made = {"of": {"segmentation": stores.segmentation}}
    (tmp_path / "meshes" / "provenance.json").write_text(json.dumps(made))
    parameters = PrecomputedParameters(volume=str(stores.segmentation), output=str(copy), kind="labels")
    write_precomputed(parameters, silent)
    monkeypatch.setattr("ensemble.viewing.ViewServer.wait", lambda server: None)
    again = ["--segmentation", str(copy), "--save", str(tmp_path / "again.json")]
    assert run_view(str(tmp_path / "view.json"), *again) == 0
    saved = Stores.load(tmp_path / "again.json")
    assert (saved.segmentation, saved.meshes, saved.skeletons) == (str(copy), stores.meshes, stores.skeletons)
