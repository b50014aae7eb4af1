"""What goes together of a campaign that has several of a kind; records stand for jobs, folders for stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.errors import DataError
from apps.core.volumes import write_volume
from ensemble.viewing.choice import choose
from ensemble.viewing.lineage import Record

GRID = {"box": {"offset": [2, 4, 6], "shape": [8, 8, 8]}}


class Campaign:
    """Records of two blocks, `a` and then `b`, from image to synapses, and what they made, as empty folders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, list[Record]()
        for block in "ab":
            self.chain(block)

    def store(self, name: str) -> str:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return str(self.folder / name)

    def done(self, stage: str, parameters: dict[str, Any], result: dict[str, Any] | None = None) -> None:
        cost = {"end": float(len(self.records))}
        self.records.append(Record.of(parameters, {"stage": stage, "result": result or {}, "cost": cost}))

    def chain(self, block: str) -> None:
        image, base, final = (self.store(f"{what}-{block}") for what in ("image", "base", "final"))
        self.done("phantom", {}, {"image": image, "labels": self.store(f"labels-{block}")})
        self.done("inference", {"image": image, "output": f"/pieces-{block}"})
        self.done("reconciliation", {"pieces": f"/pieces-{block}", "grid": GRID}, {"segmentation": base})
        agglomerated = {"segmentation": base, "image": image, "offset": [2, 4, 6]}
        self.done("agglomeration", agglomerated, {"segmentation": final})
        for what in ("meshes", "skeletons"):
            self.done(what, {"segmentation": final}, {what: self.store(f"{what}-{block}")})
        found = {"synapses": self.store(f"all-{block}")}
        self.done("synapses", {"image": image, "segmentation": final}, found)
        self.done("connectome", found, {"synapses": self.store(f"synapses-{block}")})

    def of(self, block: str) -> dict[str, Any]:
        layers = ("image", "labels", "meshes", "skeletons", "synapses")
        return {**{layer: self.store(f"{layer}-{block}") for layer in layers}, "offset": [2, 4, 6]}


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path)


def test_all_that_is_shown_is_of_one_block(campaign: Campaign) -> None:
    choice = choose(campaign.records)
    assert choice.stores == {**campaign.of("b"), "segmentation": campaign.store("final-b")}
    (remark,) = choice.remarks
    assert f"{campaign.store('final-a')} (of {campaign.store('image-a')})" in remark and "--segmentation" in remark
    assert "base" not in remark  # what was agglomerated since is no other result


@pytest.mark.parametrize("layer", ["image", "segmentation"])
def test_the_rest_follows_what_the_user_names(campaign: Campaign, layer: str) -> None:
    given = {"image": campaign.store("image-a"), "segmentation": campaign.store("final-a")}
    choice = choose(campaign.records, {layer: given[layer]})
    assert {**choice.stores, layer: given[layer]} == {**campaign.of("a"), **given} and choice.remarks == ()


def test_a_newer_image_and_newer_synapses_of_another_block_are_left_alone(campaign: Campaign) -> None:
    campaign.done("inference", {"image": campaign.store("image-c"), "output": "/pieces-c"})
    elsewhere = {"image": campaign.store("image-c"), "segmentation": campaign.store("final-c")}
    campaign.done("synapses", elsewhere, {"synapses": campaign.store("synapses-c")})
    stores = choose(campaign.records).stores
    assert (stores["image"], stores["synapses"]) == (campaign.store("image-b"), campaign.store("synapses-b"))


def test_synapses_of_what_was_not_agglomerated_are_not_shown(campaign: Campaign) -> None:
    choice = choose(campaign.records, {"segmentation": campaign.store("base-b")})
    assert choice.stores["image"] == campaign.store("image-b")
    assert not {"synapses", "meshes", "skeletons"} & choice.stores.keys()
    assert [remark.split(" are shown")[0] for remark in choice.remarks] == ["no meshes", "no skeletons", "no synapses"]


def test_an_image_that_was_taken_in_from_hdf5_is_shown_as_it_lies_there(campaign: Campaign, tmp_path: Path) -> None:
    copy = campaign.store("copy.zarr")
    campaign.done("ingest", {"image": "/em.h5:raw"}, {"image": copy})
    campaign.done("inference", {"image": "/em.h5:raw", "output": "/pieces-c"})
    campaign.done("reconciliation", {"pieces": "/pieces-c", "grid": GRID}, {"segmentation": campaign.store("base-c")})
    assert choose(campaign.records, {"segmentation": campaign.store("base-c")}).stores["image"] == copy
    gone = [record for record in campaign.records if record.stage != "ingest"]
    choice = choose(gone, {"segmentation": campaign.store("base-c")})
    assert "image" not in choice.stores and "/em.h5:raw, is not there" in choice.remarks[0]


def test_the_image_of_a_consensus_is_that_of_its_pieces(campaign: Campaign) -> None:
    campaign.done("consensus", {"first": "/pieces-a", "second": "/pieces-x", "output": "/agreed"})
    campaign.done("reconciliation", {"pieces": "/agreed", "grid": GRID}, {"segmentation": campaign.store("base-c")})
    assert choose(campaign.records, {"segmentation": campaign.store("base-c")}).stores["image"] == campaign.store(
        "image-a"
    )


def test_without_a_record_shape_and_voxel_size_decide_and_it_is_said(tmp_path: Path) -> None:
    mine, records = str(tmp_path / "mine.zarr"), list[Record]()
    write_volume(mine, np.ones((6, 6, 6), np.uint64), (8.0, 8.0, 8.0))
    for number, (shape, size) in enumerate((((6, 6, 6), 8.0), ((4, 8, 8), 8.0), ((6, 6, 6), 10.0))):
        image = str(tmp_path / f"image-{number}.zarr")
        write_volume(image, np.ones(shape, np.uint8), (size, size, size))
        made = {"image": image, "labels": None}
        records.append(Record.of({}, {"stage": "phantom", "result": made, "cost": {"end": float(number)}}))
    choice = choose(records, {"segmentation": mine})
    assert choice.stores["image"] == str(tmp_path / "image-0.zarr")
    assert (
        "nothing recorded tells whether image" in choice.remarks[0]
        and "shape and voxel size agree" in choice.remarks[0]
    )
    other = str(tmp_path / "other.zarr")
    write_volume(other, np.ones((6, 6, 6), np.uint8), (8.0, 8.0, 8.0))
    records.append(Record.of({}, {"stage": "phantom", "result": {"image": other}, "cost": {"end": 9.0}}))
    with pytest.raises(DataError, match=r"several can: .*other\.zarr, .*image-0\.zarr; choose one with --image"):
        choose(records, {"segmentation": mine})


def test_another_copy_of_an_image_that_cannot_be_shown_keeps_the_segmentation(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path / "others")  # whose stores are no volumes
    copy, base, final = (str(tmp_path / f"{name}.zarr") for name in ("copy", "base", "final"))
    write_volume(copy, np.ones((12, 12, 14), np.uint8), (8.0, 8.0, 8.0))
    for store in (base, final):
        write_volume(store, np.ones((8, 8, 8), np.uint64), (8.0, 8.0, 8.0))
    campaign.done("inference", {"image": "/em.h5:raw", "output": "/pieces-c"})
    campaign.done("reconciliation", {"pieces": "/pieces-c", "grid": GRID}, {"segmentation": base})
    agglomerated = {"segmentation": base, "image": "/em.h5:raw", "offset": [2, 4, 6]}
    campaign.done("agglomeration", agglomerated, {"segmentation": final})
    choice = choose(campaign.records, {"image": copy})
    assert choice.stores["segmentation"] == final and choice.stores["offset"] == [2, 4, 6]
    assert f"whether segmentation {final} (of /em.h5:raw) belongs to image {copy}" in choice.remarks[0]
    assert "shape and voxel size agree" in choice.remarks[0]


@pytest.mark.parametrize("layer", ["segmentation", "image"])
def test_a_precomputed_copy_is_the_same_store(campaign: Campaign, layer: str) -> None:
    original = campaign.store("final-a" if layer == "segmentation" else "image-a")
    copy = campaign.store("copy")
    campaign.done("precomputed", {"volume": original, "output": copy}, {"precomputed": copy, "complete": True})
    choice = choose(campaign.records, {layer: copy})
    shown = {**campaign.of("a"), "segmentation": campaign.store("final-a"), layer: copy}
    assert {**choice.stores, layer: copy} == shown and choice.remarks == ()
