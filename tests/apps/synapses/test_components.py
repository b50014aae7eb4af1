"""Components across tiles: those of the volume at once, whatever the tiles."""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
import pytest

from apps.core.boxes import Box, Triple
from apps.core.subvolumes import SubvolumeGrid
from apps.synapses.components import CONNECTIVITY, NAMES, Components, find_components, join
from apps.synapses.records import read_record, text_of

SHAPE: Triple = (13, 21, 17)


def in_tiles(volume: np.ndarray, tile: Triple) -> Components:
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), SHAPE), shape=tile)
    parts = [find_components(volume[piece.write_box.slices()], 128, piece.write_box, SHAPE) for piece in grid]
    return join(grid.counts, lambda n: parts[n].components, lambda n, side: parts[n].faces[side], lambda n: None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tile", [(4, 5, 6), (13, 1, 17), (1, 7, 4), (40, 40, 40)])
def test_any_tiles_give_what_the_whole_gives(seed: int, tile: Triple) -> None:
    rng = np.random.default_rng(seed)
    volume = np.where(rng.random(SHAPE) < 0.35, rng.integers(128, 256, SHAPE), rng.integers(0, 128, SHAPE)).astype(
        np.uint8
    )
    labels = cc3d.connected_components((volume >= 128).astype(np.uint8), connectivity=CONNECTIVITY)
    found = in_tiles(volume, tile)
    assert len(found) == labels.max() > 20
    assert (np.diff(found.first) > 0).all()
    for index in range(len(found)):
        mask = labels == labels.ravel()[found.first[index]]
        places = np.argwhere(mask)
        assert found.first[index] == np.flatnonzero(mask)[0]
        assert found.voxels[index] == len(places)
        np.testing.assert_allclose(found.centres()[index], places.mean(axis=0))
        assert found.probability[index] == volume[mask].sum()
        assert found.low[index].tolist() == places.min(axis=0).tolist()
        assert found.high[index].tolist() == places.max(axis=0).tolist()


def test_corners_do_not_connect() -> None:
    volume = np.zeros(SHAPE, np.uint8)
    volume[3, 4, 5] = volume[4, 5, 5] = 255
    assert len(in_tiles(volume, (4, 5, 6))) == 2


def test_none() -> None:
    assert len(in_tiles(np.zeros(SHAPE, np.uint8), (4, 5, 6))) == 0


def test_a_record_is_read_as_written(tmp_path: Path) -> None:
    volume = np.zeros((4, 4, 4), np.uint8)
    volume[1:3, 1, 0] = 200
    made = find_components(volume, 128, Box.of((4, 0, 8), (4, 4, 4)), SHAPE)
    made.save(tmp_path / "tile.npz", plan="mine")
    record = read_record(tmp_path / "tile.npz")
    assert record is not None
    assert text_of(record, "plan") == "mine"
    assert text_of(record, "network") == ""
    for name in NAMES:
        np.testing.assert_array_equal(record[name], getattr(made.components, name))
    assert made.components.centres().tolist() == [[5.5, 1, 8]]
    assert [face.sum() for face in made.faces] == [0, 0, 0, 0, 2, 0]
    (tmp_path / "tile.npz").write_bytes(b"PK")
    assert read_record(tmp_path / "tile.npz") is None
    assert read_record(tmp_path / "none.npz") is None
