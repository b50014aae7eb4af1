"""The quality page of a pipeline: pictures of real outputs, and lines where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.quality import check_quality_table
from apps.alignment.stage import STAGE as ALIGNMENT
from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.montage.stage import STAGE as MONTAGE
from ensemble.pipeline.page import PageContent, StepLine, gather_pictures, write_page
from tests.analysis.test_report import Page
from tests.apps.montage.samples import cut, write

SECTIONS = 3


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """A montage of a few sections, aligned, and a mask of what came out."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiles = write(folder, {number: cut(seed=5, grid=(2, 2)) for number in range(SECTIONS)})
    montage, alignment, masking = (folder / name for name in ("montage", "alignment", "masking"))
    MONTAGE.run(MONTAGE.parameters.from_json({"tiles": str(tiles), "output": str(montage)}), silent)
    given = {"montage": str(montage), "output": str(alignment)}
    ALIGNMENT.run(ALIGNMENT.parameters.from_json(given), silent)
    image = open_volume(str(alignment / "aligned.zarr")).read()
    write_volume(masking / "masks.zarr", np.where(image == 0, 3, image % 3).astype(np.uint8), (40, 8, 8))
    return {
        "tiles": {"stage": "montage", "output": str(montage), "tiles": str(tiles)},
        "volume": {"stage": "alignment", "output": str(alignment)},
        "masks": {"stage": "masking", "output": str(masking)},
    }


def table(held: int | None = 1) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    stages = {"tiles": "montage", "volume": "alignment", "masks": "masking"}
    for step, stage in stages.items():
        for section in range(SECTIONS):
            bad = section == held and step == "tiles"
            rows.append(
                {
                    "step": step, "stage": stage, "section": section, "measure": "score", "unit": "", "faults": "",
                    "value": 0.1 if bad else 0.9, "better": "higher", "threshold": 0.5, "passed": not bad,
                    "state": "held" if bad else "passed", "description": "how good it is",
                }
            )  # fmt: skip
    return check_quality_table(pd.DataFrame(rows))


def test_a_page_with_pictures_of_all_stages(tmp_path: Path, outputs: dict[str, dict[str, str]]) -> None:
    lines = tuple(StepLine(step, places["stage"], 3, 3, 0, 0, 9.0) for step, places in outputs.items())
    content = PageContent("block", table(), lines, outputs, {"seed": 1}, (("ls", "its jobs"),), ("A phantom.",))
    text = write_page(tmp_path / "page.html", content).read_text()
    assert len(Page(text).addresses) == 1 + SECTIONS + 1 + SECTIONS + 3, "states, pictures by step, three measures"
    for said in (
        "pipeline block",
        "2 of 3 sections went through tiles, volume and masks.",
        "tiles, section 1",
        "Held: score is 0.100; its gate wants at least 0.500.",
        "volume, across the sections",
        "masks, section 2",
        "ensemble gate accept block tiles --sections 1",
        "A phantom.",
    ):
        assert said in text
    assert "no picture" not in text


def test_the_worst_sections_come_with_an_ordinary_one(outputs: dict[str, dict[str, str]]) -> None:
    rows = table(held=None)
    rows.loc[rows["step"] == "tiles", "value"] = [0.7, 0.6, 0.9]
    many = pd.concat(
        [rows[rows["step"] == "tiles"], *(rows.iloc[2:3].assign(section=n, value=0.95) for n in range(3, 9))]
    )
    montage = {"tiles": outputs["tiles"]}
    pictures, missing = gather_pictures(many, montage)
    assert [made.title for made in pictures] == [f"tiles, section {n}" for n in (1, 0, 2)] and not missing
    assert all(made.png.startswith(b"\x89PNG") for made in pictures)


def test_planes_count_from_the_first_section(outputs: dict[str, dict[str, str]]) -> None:
    later = {**outputs, "masks": outputs["masks"] | {"first_section": "1"}}
    pictures, missing = gather_pictures(table(held=None), later)
    assert {"masks, section 1", "masks, section 2"} <= {made.title for made in pictures}
    assert len(missing) == 1 and "masks, section 0: no picture" in missing[0] and "has no plane -1" in missing[0]


def test_what_is_not_there_has_no_picture_and_no_line(tmp_path: Path) -> None:
    places = {
        "tiles": {"stage": "montage", "output": str(tmp_path / "none"), "tiles": "t.csv"},
        "volume": {"stage": "alignment", "output": str(tmp_path)},
        "masks": {"stage": "masking", "output": str(tmp_path)},
        "other": {"stage": "evaluation"},
    }
    assert gather_pictures(table(), places) == ([], [])


def test_a_picture_that_fails_is_a_line(tmp_path: Path, outputs: dict[str, dict[str, str]]) -> None:
    places = {
        "tiles": outputs["tiles"] | {"tiles": str(tmp_path / "gone.csv")},
        "volume": outputs["volume"] | {"montage": str(tmp_path / "gone")},
        "masks": outputs["masks"] | {"image": str(tmp_path / "gone.zarr")},
    }
    text = write_page(tmp_path / "page.html", PageContent("block", table(), outputs=places)).read_text()
    assert text.count("no picture (") == 2 * SECTIONS + 1
    assert "gone.csv" in text and "gone.zarr" in text


def test_two_alignments_leave_a_mask_without_its_image(outputs: dict[str, dict[str, str]]) -> None:
    places = {"masks": outputs["masks"], "volume": outputs["volume"], "again": outputs["volume"] | {"montage": "none"}}
    missing = gather_pictures(table(), places)[1]
    assert sum("2 steps of stage alignment" in line for line in missing) == SECTIONS


def test_a_wrong_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without state"):
        write_page(tmp_path / "page.html", PageContent("block", table().drop(columns="state")))
    assert not (tmp_path / "page.html").exists()
