"""Which synapses count, and the voxels of objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from apps.connectome import objects as objects_module
from apps.connectome.objects import Objects, count_voxels, read_objects
from apps.connectome.wiring import choose_synapses, join_edges
from apps.core.errors import DataError
from apps.core.volumes import open_volume, write_volume
from tests.apps.connectome.samples import synapses

UNIT = (10.0, 10.0, 10.0)


def sizes(**voxels: int) -> Objects:
    """`sizes(n1=5)`: object 1 has 5 voxels."""
    ids = sorted((int(name[1:]), count) for name, count in voxels.items())
    return Objects(np.array([i for i, _ in ids], np.uint64), np.array([n for _, n in ids], np.int64))


def test_every_synapse_left_out_is_counted_once() -> None:
    table = synapses(
        (1, 2), (1, 2), (2, 3), (0, 2), (1, 0), (3, 3), (1, 4), (2, 1), (4, 4), confidence=(1, 1, 0.2, *[1] * 6)
    )  # fmt: skip
    chosen, kept = choose_synapses(table, sizes(n1=9, n2=9, n3=9, n4=2), 0.5, min_voxels=5, min_synapses=2)
    assert chosen.id.tolist() == [1, 2]
    assert kept.to_dict() == {
        "given": 9,
        "low_confidence": 1,
        "unknown_partner": 2,
        "autapses": 2,
        "small_partner": 1,
        "weak": 1,
        "kept": 2,
    }
    alone, kept = choose_synapses(table, None, autapses=True)
    assert (kept.kept, kept.unknown_partner, len(alone)) == (7, 2, 7)


def test_bounds_are_in() -> None:
    table = synapses((1, 2), confidence=(0.5,))
    assert choose_synapses(table, sizes(n1=5, n2=5), 0.5, 5, 1)[1].kept == 1
    assert choose_synapses(table, sizes(n1=5, n2=4), 0.5, 5, 1)[1].small_partner == 1


def test_the_order_of_rows_does_not_matter() -> None:
    table = synapses((1, 2), (3, 1), (1, 2), (2, 3), confidence=(0.3, 0.4, 0.6, 0.7))
    turned = table.take(np.array([3, 1, 0, 2]))
    one, other = (join_edges(choose_synapses(t, None)[0]) for t in (table, turned))
    for name in ("pre", "post", "synapses", "confidence"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert list(zip(one.pre.tolist(), one.post.tolist(), one.synapses.tolist(), strict=True)) == [
        (1, 2, 2),
        (2, 3, 1),
        (3, 1, 1),
    ]
    assert one.confidence.tolist() == pytest.approx([0.45, 0.7, 0.4])


def test_a_partner_of_another_segmentation_is_named() -> None:
    with pytest.raises(DataError, match=r"2 of their partners, among them 8, are no objects of the segmentation"):
        choose_synapses(synapses((1, 8), (9, 1)), sizes(n1=5, n7=5))
    with pytest.raises(DataError, match="1 of their partners, among them 1"):
        choose_synapses(synapses((1, 8)), sizes(n8=5))


def test_voxels_are_counted_across_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 3, 7, 2**53 + 1], np.uint64), (17, 20, 33))
    write_volume(tmp_path / "s.zarr", labels, UNIT, chunks=(8, 8, 8))
    monkeypatch.setattr(objects_module, "_PART_VOXELS", 8 * 8 * 16)
    monkeypatch.setattr(objects_module, "_WAITING", 5)
    seen: list[tuple[int, int]] = []
    found = count_voxels(open_volume(str(tmp_path / "s.zarr")), lambda done, total: seen.append((done, total)))
    ids, counts = np.unique(labels[labels != 0], return_counts=True)
    assert found.ids.tolist() == ids.tolist()
    assert found.voxels.tolist() == counts.tolist()
    assert len(seen) > 4
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert found.find(np.array([3, 4, 2**53 + 1, 2**60], np.uint64)).tolist() == [0, -1, 2, -1]


def test_an_empty_segmentation_has_no_object(tmp_path: Path) -> None:
    write_volume(tmp_path / "s.zarr", np.zeros((4, 4, 4), np.uint8), UNIT)
    empty = count_voxels(open_volume(str(tmp_path / "s.zarr")))
    assert len(empty.ids) == 0
    assert empty.find(np.array([5], np.uint64)).tolist() == [-1]


def test_bad_segmentations_are_named(tmp_path: Path) -> None:
    write_volume(tmp_path / "f.zarr", np.ones((4, 4, 4), np.float32), UNIT)
    with pytest.raises(DataError, match=r"f.zarr: has dtype float32; expected integer labels"):
        count_voxels(open_volume(str(tmp_path / "f.zarr")))
    write_volume(tmp_path / "n.zarr", np.full((4, 4, 4), -2, np.int32), UNIT)
    with pytest.raises(DataError, match=r"n.zarr: holds the label -2"):
        count_voxels(open_volume(str(tmp_path / "n.zarr")))


def test_tables_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "objects.parquet"

    def write(**columns: list[int | None]) -> Path:
        parquet.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), file)
        return file

    found = read_objects(write(object=[9, 0, 4, 6], voxels=[5, 7, 6, 0], more=[1, 1, 1, 1]))
    assert (found.ids.tolist(), found.voxels.tolist()) == ([4, 9], [6, 5])
    assert read_objects(write(id=[2], voxels=[1])).ids.tolist() == [2]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"object": [1]}, "has the columns object; expected object"),
        ({"name": [1], "voxels": [1]}, "expected object"),
        ({"object": [1, 1], "voxels": [2, 3]}, "object 1 is there twice"),
        ({"object": [1, None], "voxels": [2, 3]}, "has empty places"),
        ({"object": [1, 5], "voxels": [2, -3]}, "object 5 has -3 voxels"),
        ({"object": [-1], "voxels": [2]}, "is no table of objects"),
    )
    for columns, words in cases:
        with pytest.raises(DataError, match=f"objects.parquet: .*{words}"):
            read_objects(write(**columns))
    file.write_text("no Parquet")
    with pytest.raises(DataError, match="is no table of objects"):
        read_objects(file)
    with pytest.raises(DataError, match="no such file"):
        read_objects(tmp_path / "none.parquet")
