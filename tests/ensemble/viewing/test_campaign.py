"""What a campaign's jobs left that can be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import StateError
from ensemble.campaigns import Campaign, CampaignPlan, create_campaign
from ensemble.viewing.campaign import stores_of_campaign
from ensemble.viewing.stores import Stores


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    site = tmp_path / "home" / "sites" / "laptop"
    site.mkdir(parents=True)
    (site / ".balsam-site").write_text("1")
    (site / "settings.yml").write_text("scheduler: {allowed_queues: {local: {max_nodes: 2}}}")
    return create_campaign(tmp_path / "home", CampaignPlan(name="demo"))


class Jobs:
    """Writes what jobs leave, each later than the one before; stores that it is told to make are folders."""

    def __init__(self, tmp_path: Path, campaign: Campaign) -> None:
        self.root = tmp_path / "home" / "sites" / "laptop" / "data" / f"demo-{campaign.uid}"
        self.stores, self.count = tmp_path / "stores", 0

    def store(self, name: str) -> str:
        (self.stores / name).mkdir(parents=True, exist_ok=True)
        return str(self.stores / name)

    def done(self, stage: str, parameters: dict[str, Any], result: dict[str, Any]) -> None:
        self.count += 1
        folder = self.root / stage / f"run-{self.count}"
        folder.mkdir(parents=True)
        (folder / "parameters.json").write_text(json.dumps(parameters))
        record = {"stage": stage, "result": result, "cost": {"end": float(self.count)}}
        (folder / "result.json").write_text(json.dumps(record))


@pytest.fixture
def jobs(tmp_path: Path, campaign: Campaign) -> Jobs:
    return Jobs(tmp_path, campaign)


GRID = {"grid": {"box": {"offset": [8, 16, 24], "shape": [64, 64, 64]}}, "pieces": "/pieces"}


def shown(tmp_path: Path, **given: str) -> Stores:
    """The view of the campaign; nothing is to be said of it."""
    choice = stores_of_campaign(tmp_path / "home", "demo", given)
    assert choice.remarks == ()
    return Stores.from_json({**choice.stores, **given})


def test_last_step_is_shown(tmp_path: Path, jobs: Jobs) -> None:
    jobs.done("phantom", {}, {"image": jobs.store("phantom.zarr"), "labels": jobs.store("other.zarr")})
    jobs.done("inference", {"image": jobs.store("image.zarr"), "output": "/pieces"}, {})
    jobs.done("reconciliation", GRID, {"segmentation": jobs.store("base.zarr")})
    jobs.done("evaluation", {"image": jobs.store("image.zarr"), "labels": jobs.store("truth.zarr")}, {})
    stores = shown(tmp_path)
    assert (stores.image, stores.segmentation) == (jobs.store("image.zarr"), jobs.store("base.zarr"))
    assert stores.labels == jobs.store("truth.zarr") and stores.offset == (8, 16, 24)
    agglomerated = {"segmentation": jobs.store("base.zarr"), "offset": [8, 16, 24], "image": jobs.store("image.zarr")}
    jobs.done("agglomeration", agglomerated, {"segmentation": jobs.store("final.zarr"), "complete": True})
    jobs.done("meshes", {"segmentation": jobs.store("final.zarr")}, {"meshes": jobs.store("meshes")})
    looked_in = {"image": jobs.store("image.zarr"), "segmentation": jobs.store("final.zarr")}
    jobs.done("synapses", looked_in, {"synapses": jobs.store("all.parquet")})
    jobs.done("connectome", {"synapses": jobs.store("all.parquet")}, {"synapses": jobs.store("kept.parquet")})
    stores = shown(tmp_path)
    assert (stores.segmentation, stores.meshes) == (jobs.store("final.zarr"), jobs.store("meshes"))
    assert stores.synapses == jobs.store("kept.parquet") and stores.offset == (8, 16, 24)


def test_newest_of_a_stage_is_taken(tmp_path: Path, jobs: Jobs) -> None:
    for name in ("first.zarr", "second.zarr"):
        jobs.done("reconciliation", GRID, {"segmentation": jobs.store(name)})
    choice = stores_of_campaign(tmp_path / "home", "demo")
    assert choice.stores["segmentation"] == jobs.store("second.zarr")
    (remark,) = choice.remarks
    assert "there are also " + jobs.store("first.zarr") in remark and "--segmentation" in remark


def test_shares_and_what_is_gone_do_not_count(tmp_path: Path, jobs: Jobs) -> None:
    jobs.done("reconciliation", GRID, {"segmentation": jobs.store("base.zarr"), "complete": True})
    jobs.done("agglomeration", {}, {"segmentation": jobs.store("part.zarr"), "complete": False})
    jobs.done("agglomeration", {}, {"segmentation": str(tmp_path / "gone.zarr"), "complete": True})
    assert shown(tmp_path).segmentation == jobs.store("base.zarr")


def test_meshes_of_another_segmentation_are_left_out(tmp_path: Path, jobs: Jobs) -> None:
    jobs.done("reconciliation", GRID, {"segmentation": jobs.store("base.zarr")})
    jobs.done("meshes", {"segmentation": jobs.store("other.zarr")}, {"meshes": jobs.store("meshes")})
    choice = stores_of_campaign(tmp_path / "home", "demo")
    assert "meshes" not in choice.stores
    assert choice.remarks == ("no meshes are shown: those that there are, are of another segmentation",)


def test_a_precomputed_copy_has_the_meshes_of_its_volume(tmp_path: Path, jobs: Jobs) -> None:
    jobs.done("reconciliation", GRID, {"segmentation": jobs.store("base.zarr")})
    jobs.done("meshes", {"segmentation": jobs.store("base.zarr")}, {"meshes": jobs.store("meshes")})
    copied = {"volume": jobs.store("base.zarr"), "output": jobs.store("copy")}
    jobs.done("precomputed", copied, {"precomputed": jobs.store("copy"), "complete": True})
    stores = shown(tmp_path, segmentation=jobs.store("copy"))
    assert stores.meshes == jobs.store("meshes") and stores.offset == (8, 16, 24)


def test_image_is_that_of_the_segmentation_and_labels_are_its_own(tmp_path: Path, jobs: Jobs) -> None:
    tissue = {"image": jobs.store("tissue.zarr"), "labels": jobs.store("tissue-labels.zarr")}
    lesson = {"image": jobs.store("lesson.zarr"), "labels": jobs.store("lesson-labels.zarr")}
    jobs.done("phantom", {}, tissue)
    jobs.done("phantom", {}, lesson)
    made = {"image": tissue["image"], "output": "/pieces"}
    jobs.done("inference", made, {"complete": False})  # a share tells the image, too
    jobs.done("reconciliation", GRID, {"segmentation": jobs.store("base.zarr")})
    stores = shown(tmp_path)
    assert (stores.image, stores.labels) == (tissue["image"], tissue["labels"])


def test_damaged_record_is_passed_over(tmp_path: Path, jobs: Jobs) -> None:
    jobs.done("alignment", {}, {"aligned": jobs.store("aligned.zarr")})
    jobs.done("ingest", {}, {"image": jobs.store("image.zarr")})
    (jobs.root / "alignment" / "run-1" / "result.json").write_text('{"stage": "alig')
    assert shown(tmp_path).image == jobs.store("image.zarr")


def test_campaign_without_volumes_is_an_error_unless_one_is_given(tmp_path: Path, jobs: Jobs) -> None:
    jobs.done("meshes", {"segmentation": "mine.zarr"}, {"meshes": jobs.store("meshes")})
    with pytest.raises(StateError, match="campaign demo: none of its jobs has made a volume"):
        stores_of_campaign(tmp_path / "home", "demo")
    with pytest.raises(StateError, match="no such campaign"):
        stores_of_campaign(tmp_path / "home", "other")
