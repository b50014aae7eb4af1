"""The index beside a table of synapses: made once, never that of another table, and never in the way."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from apps.core.files import try_lock
from apps.synapses.table import SynapseTable, read_synapses
from ensemble.viewing import kept_index
from ensemble.viewing.kept_index import index_file, open_index
from ensemble.viewing.synapse_index import SynapseIndex, build_index
from tests.ensemble.viewing.samples import synapse_table

COUNT = 3000


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that is large enough to have its index kept."""
    monkeypatch.setattr(kept_index, "LEAST_KEPT", COUNT)
    synapse_table(COUNT).to_parquet(tmp_path / "synapses.parquet")
    return tmp_path / "synapses.parquet"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many synapses an index was made, each time."""
    made: list[int] = []

    def counted(found: SynapseTable) -> SynapseIndex:
        index = build_index(found)
        made.append(len(index))
        return index

    monkeypatch.setattr(kept_index, "build_index", counted)
    return made


def same(one: SynapseIndex, other: SynapseIndex) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def names(table: Path) -> set[str]:
    return {path.name for path in table.parent.iterdir()}


def test_a_later_start_reads_what_the_first_has_kept(table: Path, builds: list[int]) -> None:
    first, second = open_index(table), open_index(table)
    assert builds == [COUNT]
    assert same(first, second) and same(second, build_index(read_synapses(table)))
    assert all(getattr(first, field.name).dtype == getattr(second, field.name).dtype for field in fields(first))
    assert names(table) == {table.name, index_file(table).name}


def test_of_a_small_table_nothing_is_kept(table: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_index, "LEAST_KEPT", COUNT + 1)
    assert len(open_index(table)) == len(open_index(table)) == COUNT
    assert (builds, names(table)) == ([COUNT, COUNT], {table.name})


def test_another_table_is_indexed_anew(table: Path, builds: list[int]) -> None:
    open_index(table)
    changed = synapse_table(COUNT)
    changed["pre"] = np.uint64(5)
    changed.to_parquet(table.with_name("new"))
    table.with_name("new").replace(table)
    assert (open_index(table).partners[:, 0] == 5).all()
    os.utime(table, ns=(0, 0))
    assert (open_index(table).partners[:, 0] == 5).all()
    assert builds == [COUNT] * 3


@pytest.mark.parametrize("damage", ["cut", "longer", "zeros", "no header", "other format", "empty"])
def test_a_damaged_index_is_made_anew(
    damage: str, table: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_index(table)
    file = index_file(table)
    content = file.read_bytes()
    changed = {
        "cut": content[:-8],
        "longer": content + bytes(8),
        "zeros": bytes(len(content)),
        "no header": content[:40] + bytes(len(content) - 40),
        "other format": content.replace(b'"format": 1', b'"format": 0'),
        "empty": b"",
    }[damage]
    file.unlink()
    file.write_bytes(changed)
    assert same(open_index(table), whole)
    assert builds == [COUNT] * 2
    assert file.read_bytes() == content


def test_viewers_that_start_at_once_all_have_it(table: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(open_index, [table] * 8))
    assert all(same(found[0], other) for other in found)
    assert names(table) == {table.name, index_file(table).name}
    assert same(open_index(table), found[0])


def test_another_viewer_that_writes_it_is_left_alone(table: Path, builds: list[int]) -> None:
    partial = table.with_name(f"{index_file(table).name}.partial")
    with partial.open("a+b") as stream:
        assert try_lock(stream)
        stream.write(b"half")
        stream.flush()
        assert len(open_index(table)) == COUNT
        assert partial.read_bytes() == b"half"
    open_index(table)  # it was killed: what it left is written over
    open_index(table)
    assert builds == [COUNT] * 2
    assert names(table) == {table.name, index_file(table).name}


def test_where_nothing_can_be_written_it_is_in_memory(table: Path, builds: list[int]) -> None:
    table.with_name(f"{index_file(table).name}.partial").mkdir()
    assert len(open_index(table)) == len(open_index(table)) == COUNT
    assert builds == [COUNT] * 2
    assert not index_file(table).exists()


def test_a_full_disk_leaves_nothing(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert len(open_index(table)) == COUNT
    assert names(table) == {table.name}


def test_a_table_that_is_replaced_while_it_is_read_is_not_kept(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(path: Path) -> SynapseTable:
        found = read_synapses(path)
        synapse_table(COUNT).to_parquet(path.with_name("new"))
        path.with_name("new").replace(path)
        return found

    monkeypatch.setattr(kept_index, "read_synapses", replaced)
    assert len(open_index(table)) == COUNT
    assert names(table) == {table.name}
