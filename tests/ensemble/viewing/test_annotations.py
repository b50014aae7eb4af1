"""Synapses as precomputed annotations: decoded by the format's rules, not by the code that writes them."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ensemble.viewing.annotations import Synapses, load_synapses
from ensemble.viewing.synapse_index import MOST_LEVELS, PER_CELL
from tests.ensemble.viewing.samples import BALLS, SHAPE, VOXEL, synapse_table


def load(folder: Path, table: pd.DataFrame) -> Synapses:
    table.to_parquet(folder / "synapses.parquet")
    return load_synapses(folder / "synapses.parquet")


def decode(content: bytes | None) -> dict[int, tuple[float, ...]]:
    """id -> six coordinates and the confidence, of a file with several annotations."""
    assert content is not None
    (count,) = struct.unpack_from("<Q", content)
    assert len(content) == 8 + count * (7 * 4 + 8)
    entries = [struct.unpack_from("<7f", content, 8 + 28 * i) for i in range(count)]
    return dict(zip(struct.unpack_from(f"<{count}Q", content, 8 + 28 * count), entries, strict=True))


def test_line_runs_from_pre_to_post_in_xyz_from_the_corner(tmp_path: Path) -> None:
    table = synapse_table(2).iloc[:1]
    row = table.iloc[0]
    (entry,) = decode(load(tmp_path, table).file("spatial0/0_0_0")).values()
    wanted = [row[f"{end}_{axis}"] + 0.5 for end in ("pre", "post") for axis in "xyz"] + [row["confidence"]]
    assert np.allclose(entry, wanted)


def test_unknown_partner_is_no_segment(tmp_path: Path) -> None:
    entry = load(tmp_path, synapse_table(3)).file("by_id/3")
    assert entry is not None and entry[28:] == struct.pack("<II", 0, 0)


def test_truth_of_a_phantom_is_read_too(tmp_path: Path) -> None:
    synapse_table(3).drop(columns="confidence").to_csv(tmp_path / "synapses.csv")
    assert load_synapses(tmp_path / "synapses.csv").index.confidence.tolist() == [1, 1, 1]


def test_entry_by_id_names_the_partners(tmp_path: Path) -> None:
    entry = load(tmp_path, synapse_table(3)).file("by_id/1")
    pre, post = sorted(BALLS)
    assert entry is not None and entry[28:] == struct.pack("<IQIQ", 1, pre, 1, post)


def test_segment_has_its_synapses(tmp_path: Path) -> None:
    synapses, (pre, post) = load(tmp_path, synapse_table(3)), sorted(BALLS)
    assert set(decode(synapses.file(f"pre/{pre}"))) == {1, 2}
    assert set(decode(synapses.file(f"post/{post}"))) == {1, 2}
    assert decode(synapses.file(f"pre/{post}")) == {} and decode(synapses.file("pre/0")) == {}


def test_every_synapse_is_once_in_the_index_and_in_its_cell(tmp_path: Path) -> None:
    count = 5 * PER_CELL
    synapses = load(tmp_path, synapse_table(count))
    info = synapses.info(VOXEL)
    assert list(info["dimensions"].items()) == [("x", [8e-9, "m"]), ("y", [8e-9, "m"]), ("z", [16e-9, "m"])]
    seen: list[int] = []
    low = np.array(info["lower_bound"])
    assert len(info["spatial"]) > 1
    for level in info["spatial"]:
        size = np.array(level["chunk_size"])
        assert np.allclose(size * level["grid_shape"], np.array(info["upper_bound"]) - low)
        for cell in itertools.product(*map(range, level["grid_shape"])):
            found = decode(synapses.file(f"{level['key']}/{'_'.join(map(str, cell))}"))
            assert len(found) <= min(level["limit"], PER_CELL)
            middles = np.array([entry[:6] for entry in found.values()]).reshape(-1, 2, 3).mean(axis=1)
            inside = (middles - low) / size - cell
            assert (inside > -1e-3).all() and (inside < 1.001).all()
            seen += found
    assert sorted(seen) == list(range(1, count + 1))
    assert len(decode(synapses.file("spatial0/0_0_0"))) == PER_CELL


def test_coarse_level_is_a_sample_of_the_whole(tmp_path: Path) -> None:
    coarse = decode(load(tmp_path, synapse_table(5 * PER_CELL)).file("spatial0/0_0_0"))
    x = np.array([entry[0] for entry in coarse.values()])
    assert abs(x.mean() - SHAPE[2] / 2) < 4 and x.std() > SHAPE[2] / 5


def test_index_does_not_depend_on_the_run(tmp_path: Path) -> None:
    first, second = (load(tmp_path, synapse_table(3000)) for _ in range(2))
    assert first.file("spatial1/0_0_0") == second.file("spatial1/0_0_0")


def test_many_synapses_in_one_place_end_on_the_last_level(tmp_path: Path) -> None:
    table = synapse_table(13 * PER_CELL)
    table[list("zyx")] = 4.0
    table[[f"{end}_{axis}" for end in ("pre", "post") for axis in "zyx"]] = 4.0
    synapses = load(tmp_path, table)
    assert (synapses.index.levels, synapses.index.most(MOST_LEVELS - 1)) == (MOST_LEVELS, 2 * PER_CELL)
    assert synapses.index.starts[-1] == len(table)


def test_no_synapses_are_no_error(tmp_path: Path) -> None:
    synapses = load(tmp_path, synapse_table(0))
    assert len(synapses.info(VOXEL)["spatial"]) == 1
    assert decode(synapses.file("spatial0/0_0_0")) == {}


@pytest.mark.parametrize(
    "name", ["", "info/x", "by_id/99", "by_id/x", "spatial9/0_0_0", "spatial0/0_0", "pre/", "spatialx/0_0_0"]
)
def test_other_files_are_not_there(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, synapse_table(3)).file(name) is None
