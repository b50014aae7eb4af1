"""Campaigns: names, plans, the driver's lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apps.core.errors import DataError, ParameterError, StateError
from ensemble.campaigns import (
    CampaignPlan,
    create_campaign,
    list_campaigns,
    open_campaign,
)
from tests.ensemble.samples import campaign_data


def test_created_campaign_is_found_by_name_with_its_data(tmp_path: Path) -> None:
    created = create_campaign(tmp_path, CampaignPlan(name="demo", seed=3))
    assert created.data is None
    created.save_data(campaign_data())
    found = open_campaign(tmp_path, "demo")
    assert (found.plan.seed, found.uid, found.data) == (3, created.uid, campaign_data())
    assert list_campaigns(tmp_path) == ["demo"]


def test_campaign_lives_where_the_user_wants_and_is_found_by_name(tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    create_campaign(tmp_path / "home", CampaignPlan(name="demo"), out)
    assert open_campaign(tmp_path / "home", "demo").folder == out.resolve()
    assert (out / "campaign.json").is_file()


def test_same_plan_again_is_the_same_campaign_and_another_plan_is_refused(tmp_path: Path) -> None:
    plan = CampaignPlan(name="demo", seed=1)
    first = create_campaign(tmp_path, plan)
    assert create_campaign(tmp_path, plan).uid == first.uid
    with pytest.raises(StateError, match=r"seed 1 \(now 2\)"):
        create_campaign(tmp_path, CampaignPlan(name="demo", seed=2))


def test_campaign_made_anew_after_its_folder_was_deleted_has_another_id(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = create_campaign(tmp_path / "home", CampaignPlan(name="demo"), out)
    for file in out.iterdir():
        file.unlink()
    out.rmdir()
    assert create_campaign(tmp_path / "home", CampaignPlan(name="demo"), out).uid != first.uid


def test_two_folders_cannot_share_a_name(tmp_path: Path) -> None:
    create_campaign(tmp_path / "home", CampaignPlan(name="demo"), tmp_path / "a")
    with pytest.raises(StateError, match="lives in"):
        create_campaign(tmp_path / "home", CampaignPlan(name="demo"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 65, "ü"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="campaign name"):
        CampaignPlan(name=name)


def test_image_needs_labels() -> None:
    with pytest.raises(ParameterError, match="without labels"):
        CampaignPlan(name="demo", image="em.h5:raw")
    with pytest.raises(ParameterError, match="without an image"):
        CampaignPlan(name="demo", labels="em.h5:labels")


def test_unknown_campaign_names_those_there_are(tmp_path: Path) -> None:
    create_campaign(tmp_path, CampaignPlan(name="demo"))
    with pytest.raises(StateError, match=r"'other'.*there are: demo"):
        open_campaign(tmp_path, "other")


def test_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be created"):
        create_campaign(tmp_path / "home", CampaignPlan(name="demo"), tmp_path / "file" / "out")


def test_second_driver_is_refused_and_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    campaign = create_campaign(tmp_path, CampaignPlan(name="demo"))
    script = (
        "import sys, time; from pathlib import Path; from ensemble.campaigns import open_campaign\n"
        "with open_campaign(Path(sys.argv[1]), 'demo').driver_lock():\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=f"process {holder.pid} drives it"), campaign.driver_lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    with campaign.driver_lock():
        pass
