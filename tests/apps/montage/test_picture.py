"""The picture of before and after shows the tiles as the stage put them, and the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.montage.parameters import MontageParameters
from apps.montage.picture import before_and_after, main
from apps.montage.stage import run
from tests.apps.montage.samples import cut, write


def test_before_and_after(tmp_path: Path) -> None:
    section = cut(seed=3, grid=(2, 2))
    table = write(tmp_path, {0: section})
    result = run(MontageParameters(tiles=str(table), output=str(tmp_path / "out"), search=20), silent)
    record = Path(result.sections[0].record)
    assert main([str(record), str(table), str(tmp_path / "picture.png"), "--size", "90"]) == 0
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert picture.shape == (90, 188) and picture[:, :90].any() and (picture[:, 90:98] == 255).all()
    image = open_volume(str(record.with_suffix(".zarr"))).read()[0]
    whole = before_and_after(record, table, 1000, (0, 0))
    assert np.array_equal(whole[:, -image.shape[1] :], image)
    # The last tile lies on top, where the stage put it: the image begins within the jitter of the stage.
    corner = np.round(section.nominal[3] - section.nominal.min(axis=0)).astype(int)
    parts = [
        whole[y + 8 : y + 100, x + 8 : x + 100].tobytes()
        for y in range(corner[0] - 14, corner[0] + 15)
        for x in range(corner[1] - 14, corner[1] + 15)
    ]
    assert section.tiles[3][8:100, 8:100].tobytes() in parts


def test_a_wrong_table_is_said(tmp_path: Path) -> None:
    section = cut(seed=3, grid=(1, 1))
    table = write(tmp_path, {0: section})
    other = write(tmp_path / "other", {1: section})
    result = run(MontageParameters(tiles=str(table), output=str(tmp_path / "out")), silent)
    assert main([result.sections[0].record, str(other), str(tmp_path / "picture.png")]) == 2
    assert not (tmp_path / "picture.png").exists()
