"""Killed at any moment, cut short or taken away: what is done again, what is named, and what stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from apps.core.boxes import Box
from apps.core.errors import DataError, StateError
from apps.core.volumes import open_volume, open_volume_to_write
from apps.reconciliation.evidence import read_links, supervoxels_of
from apps.reconciliation.making import Making
from apps.reconciliation.units import unit_path
from tests.apps.reconciliation.made import check_restored, digest, do, piece, small, write_piece


def test_a_kill_between_chunks_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = small(tmp_path)
    do(parameters, "compare")
    do(parameters, "solve")
    real = Making._relabel

    def killed(self: Making, number: int) -> Any:
        if number == 2:
            self.volume.write(self.box(number), np.full(self.box(number).shape, 77, np.uint64))
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr(Making, "_relabel", killed)
    with pytest.raises(KeyboardInterrupt):
        do(parameters, "relabel")
    monkeypatch.undo()
    with pytest.raises(StateError, match="subvolume 2: its box is not written yet; run the action relabel first"):
        do(parameters, "finish")
    assert not Path(parameters.output).exists()
    assert do(parameters, "relabel").units == 2
    assert do(parameters, "finish").complete
    check_restored(parameters)


def test_a_kill_while_finishing_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = small(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apps.reconciliation.manifest.move_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        do(parameters)
    monkeypatch.undo()
    assert not Path(parameters.output).exists()
    monkeypatch.setattr(Making, "clear", killed)
    with pytest.raises(KeyboardInterrupt):
        do(parameters)
    monkeypatch.undo()
    assert do(parameters).units == 0
    check_restored(parameters)
    # The records that were left are of a volume that has gone; they must not be taken for those of a new one.
    shutil.rmtree(parameters.output)
    assert do(parameters).units == 4
    check_restored(parameters)


def test_a_kill_while_the_names_change_leaves_no_old_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = small(tmp_path)
    do(parameters)
    labels = open_volume(str(piece(parameters, 3))).read()
    write_piece(Path(parameters.pieces), 3, np.where(labels == labels.max(), 0, labels))
    real = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "segmentation.zarr":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        do(parameters)
    monkeypatch.undo()
    assert do(parameters).complete
    assert do(parameters, "verify").complete
    fresh = replace(parameters, output=str(tmp_path / "fresh.zarr"))
    do(fresh)
    assert digest(Path(fresh.output)) == digest(Path(parameters.output))
    assert not list(tmp_path.glob(".*"))


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    do(parameters)
    volume = open_volume_to_write(parameters.output)
    volume.write(Box.of((16, 0, 16), (16, 13, 16)), np.full((16, 13, 16), 5, np.uint64))
    with pytest.raises(DataError, match=r"in the boxes of the subvolumes 3 \(16:32,0:13,16:32\)"):
        do(parameters, "verify")
    (tmp_path / "merged-reconciliation" / "manifest.parquet").unlink()
    with pytest.raises(DataError, match=r"manifest\.parquet: no such file"):
        do(parameters, "verify")


def test_a_damaged_unit_is_compared_again(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    do(parameters, "compare")
    path = unit_path(parameters.work_folder, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"000000001\.columns: is damaged; remove it and run the action compare again"):
        do(parameters, "solve")
    path.write_bytes(b"?")
    assert do(parameters, "compare").units == 1
    path.unlink()
    with pytest.raises(StateError, match="subvolume 1: it or a neighbour of it is not compared yet"):
        do(parameters, "solve")


def test_a_volume_in_the_making_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    for action in ("compare", "solve", "relabel"):
        do(parameters, action)
    shutil.rmtree(parameters.work_folder / "segmentation.zarr")  # the records of its boxes stay
    for action in ("relabel", "finish"):
        with pytest.raises(StateError, match=r"segmentation\.zarr: is not there; run the action solve first"):
            do(parameters, action)
    assert do(parameters).units == 4
    check_restored(parameters)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("solution/solution.json", 10),
        ("solution/mapping/local.u4", 8),
        ("solution/mapping/starts.i8", 0),
        ("solution/mapping/object.u8", None),
        ("solution/links.parquet", None),
        ("solution/links.parquet", 200),
        ("solution/objects.parquet", 3),
        ("solution/seams.parquet", 0),
        ("manifest.parquet", 30),
    ],
)
def test_what_is_cut_short_or_gone_in_the_work_folder_is_made_again(
    tmp_path: Path, name: str, size: int | None
) -> None:
    parameters = small(tmp_path)
    do(parameters)
    expected = digest(Path(parameters.output)), digest(parameters.work_folder / "solution")
    file = parameters.work_folder / name
    if size is None:
        file.unlink()
    else:
        os.truncate(file, size)
    if name.startswith("manifest"):
        with pytest.raises(DataError, match=r"manifest\.parquet: is damaged .*; remove it and .*merged\.zarr"):
            do(parameters, "verify")
    else:
        with pytest.raises(StateError, match="has no solution"):
            supervoxels_of(parameters.work_folder, 1)
    assert do(parameters).complete
    assert (digest(Path(parameters.output)), digest(parameters.work_folder / "solution")) == expected
    assert do(parameters, "verify").complete


def test_starts_cut_short_before_an_empty_subvolume_are_written_again(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    write_piece(Path(parameters.pieces), 3, np.zeros_like(open_volume(str(piece(parameters, 3))).read()))
    do(parameters)
    expected = digest(parameters.work_folder / "solution")
    os.truncate(parameters.work_folder / "solution/mapping/starts.i8", 32)  # whose last number is that of all rows
    write_piece(Path(parameters.pieces), 0, open_volume(str(piece(parameters, 0))).read())
    do(parameters)
    assert digest(parameters.work_folder / "solution") == expected


def test_links_that_are_damaged_are_named(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    do(parameters)
    file = parameters.work_folder / "solution/links.parquet"
    whole = file.read_bytes()
    file.write_bytes(b"PAR1" + bytes(len(whole) - 8) + b"PAR1")
    with pytest.raises(DataError, match=r"links\.parquet: is damaged .*; remove .*solution, and run the"):
        read_links(parameters.work_folder, supervoxels=[1])
