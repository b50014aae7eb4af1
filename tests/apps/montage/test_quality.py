"""The scores of sections as gates and tables read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.quality import load_quality
from apps.montage.parameters import MontageParameters
from apps.montage.quality import QUALITY, read
from apps.montage.records import SectionRecord
from apps.montage.stage import run
from tests.apps.montage.samples import cut, write


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Section 2 as it should be, section 5 without structure, section 6 blank."""
    folder = tmp_path_factory.mktemp("quality")
    noise, rng = cut(seed=2, grid=(2, 2)), np.random.default_rng(0)
    noise.tiles = [np.rint(rng.normal(128, 15, tile.shape)).astype(np.uint8) for tile in noise.tiles]
    table = write(folder, {2: cut(seed=1, grid=(2, 2)), 5: noise, 6: cut(seed=3, grid=(1, 2))})
    for tile in (folder / "tiles").glob("006_*.tif"):
        tifffile.imwrite(tile, np.full((128, 128), 90, np.uint8))
    run(MontageParameters(tiles=str(table), output=str(folder / "out"), search=20, chunk=128), silent)
    return folder / "out"


def test_measures_are_those_of_the_records(output: Path) -> None:
    good, poor, blank = read(output, None)
    assert [good.section, poor.section, blank.section] == [2, 5, 6]
    for quality in (good, poor, blank):
        record = SectionRecord.load(output / "sections" / f"{quality.section:05d}.json")
        present = 0.0 if quality is blank else 1.0
        assert quality.values == {"tiles_present": present, **record.scores.to_dict()}
        assert quality.faults == tuple(fault.message for fault in record.faults)
    assert good.faults == () and "no overlap" in poor.faults[0] and "blank" not in poor.faults[0]
    assert {name for name, value in blank.values.items() if value is not None} == {"tiles_present"}


def test_the_default_gate_lets_the_good_pass_and_holds_the_poor(output: Path) -> None:
    good, poor, _ = read(output, None)

    def worse(values: dict[str, float | None]) -> set[str]:
        found = set()
        for name, threshold in QUALITY.default_gate.items():
            value = values[name]
            if value is not None and (value < threshold) == (QUALITY.measure(name).better == "higher"):
                found.add(name)
        return found

    assert worse(good.values) == set()
    assert worse(poor.values) == {"overlap_correlation", "tiles_connected"}


def test_a_section_that_has_lost_a_tile_says_so_though_no_pair_is_left(tmp_path: Path) -> None:
    table = write(tmp_path, {0: cut(seed=1, grid=(1, 2)), 1: cut(seed=2, grid=(1, 2))})
    next((tmp_path / "tiles").glob("000_*.tif")).unlink()
    run(MontageParameters(tiles=str(table), output=str(tmp_path / "out"), search=20, chunk=128), silent)
    found = read(tmp_path / "out", (0,))[0].values
    assert found["tiles_present"] == 0.5 < QUALITY.default_gate["tiles_present"]
    assert found["overlap_correlation"] is None


def test_a_section_that_is_not_done_is_absent(output: Path, tmp_path: Path) -> None:
    assert [quality.section for quality in read(output, (5, 2, 9))] == [2, 5]
    assert read(tmp_path, None) == []
    shutil.copytree(output, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "sections" / "00002.zarr")
    assert [quality.section for quality in read(tmp_path / "out", None)] == [5, 6]


def test_a_record_that_cannot_be_read_is_named(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "sections" / "00005.json").write_text("{")
    with pytest.raises(DataError, match=r"00005\.json: .*make the section again"):
        read(tmp_path / "out", None)


def test_the_stage_tells_its_quality() -> None:
    assert load_quality("montage") is QUALITY
    with pytest.raises(DataError, match="no such measure"):
        QUALITY.measure("beauty")
