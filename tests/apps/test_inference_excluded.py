"""Subvolumes that masks exclude wholly: known by tiles, and stored as all others are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.progress import silent
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.volumes import open_volume, write_volume
from apps.ffn.masks import MaskParameters, read_masks
from apps.inference import outputs
from apps.inference.excluded import ExcludedTiles, digest, digest_of_all
from apps.inference.outputs import summary_path
from apps.inference.stage import InferenceParameters
from apps.inference.stage import run as run_stage
from tests.apps.test_inference import parameters

VOXEL_NM = (10.0, 10.0, 10.0)
SHAPE = (24, 100, 140)
# 2 x 3 write boxes; their read boxes reach into the neighbours by up to 10 voxels.
GRID = SubvolumeGrid(box=Box.of((0, 0, 0), SHAPE), shape=(24, 64, 64), overlap=(0, 20, 20))


def mask_of(folder: Path, name: str, *parts: tuple[slice, ...], shape: tuple[int, int, int] = SHAPE) -> MaskParameters:
    """A mask that excludes the parts (zyx)."""
    values = np.zeros(shape, np.uint8)
    for part in parts:
        values[part] = 3
    write_volume(folder / name, values, VOXEL_NM)
    return MaskParameters(volume=str(folder / name), values=(3,))


@pytest.fixture
def masked(tmp_path: Path) -> InferenceParameters:
    """Two masks that together exclude all columns from 64 on: two tiles of three, of which the last is narrower."""
    masks = (
        mask_of(tmp_path, "left.zarr", (slice(None), slice(None), slice(64, 110))),
        mask_of(tmp_path, "right.zarr", (slice(None), slice(None), slice(105, None))),
    )
    write_volume(tmp_path / "large.zarr", np.full(SHAPE, 60, np.uint8), VOXEL_NM)
    common = parameters(tmp_path, subvolumes=(), grid=GRID, output=str(tmp_path / "pieces"), masks=masks)
    return msgspec.structs.replace(common, image=str(tmp_path / "large.zarr"))


def files_of(folder: Path) -> dict[str, bytes]:
    """All files, but for the seconds that the summaries name."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            if file.name.endswith("-summary.json"):
                summary = json.loads(content)
                for name in ("seed_seconds", "model_seconds", "other_seconds"):
                    summary["result"].pop(name)
                content = json.dumps(summary).encode()
            found[str(file.relative_to(folder))] = content
    return found


def test_they_leave_what_others_leave(
    masked: InferenceParameters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; and what one way has finished the other takes for finished."""
    stored: list[str] = []
    store_empty = outputs.store_empty

    def counting(output: Path, *rest: Any) -> outputs.SubvolumeResult:
        stored.append(output.stem)
        return store_empty(output, *rest)

    monkeypatch.setattr("apps.inference.stage.store_empty", counting)
    told: list[tuple[float, float]] = []
    quick = run_stage(masked, lambda done, total, what="": told.append((done, total)))
    assert stored == ["000000002", "000000005"]  # the read boxes of the middle ones begin in the first tile
    assert (quick.count, quick.without_look, quick.objects) == (6, 6, 0)
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1] == (6, 6)
    pieces = tmp_path / "pieces"
    before = files_of(pieces)
    assert len(before) == 6 * 4
    assert not open_volume(str(piece_path(pieces, 5))).read().any()

    monkeypatch.setattr(ExcludedTiles, "hold", lambda tiles, box: False)
    times = {path: path.stat().st_mtime_ns for path in pieces.rglob("*")}
    assert run_stage(masked, silent).count == 6
    assert {path: path.stat().st_mtime_ns for path in pieces.rglob("*")} == times
    pieces.rename(tmp_path / "quick")
    slow = run_stage(masked, silent)
    assert files_of(pieces) == before
    assert (slow.masked_read, slow.masked_write) == (quick.masked_read, quick.masked_write)
    assert len(stored) == 2


def test_one_that_is_killed_half_way_is_not_finished(
    masked: InferenceParameters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is what there was of another model or mask: its summary goes first."""
    run_stage(masked, silent)
    other = msgspec.structs.replace(masked, settings=msgspec.structs.replace(masked.settings, min_size=7))
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(outputs, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage(msgspec.structs.replace(other, numbers=(2,)), silent)
    assert not summary_path(piece_path(tmp_path / "pieces", 2)).exists()
    run_stage(other, silent)
    again = files_of(tmp_path / "pieces")
    (tmp_path / "pieces").rename(tmp_path / "killed")
    run_stage(other, silent)
    assert files_of(tmp_path / "pieces") == again


@pytest.mark.parametrize("name", ["000000007", "z", 'a "quoted" Ünicode', "subvolume"])
def test_an_empty_volume_has_the_files_of_one_that_was_written(tmp_path: Path, name: str) -> None:
    for folder in ("written", "made"):
        (tmp_path / folder).mkdir()
    for shape in ((24, 64, 70), (3, 4, 5)):
        write_volume(tmp_path / "written" / f"{name}.zarr", np.zeros(shape, np.uint32), VOXEL_NM)
        outputs._write_empty_volume(tmp_path / "made" / f"{name}.zarr", shape, np.uint32, VOXEL_NM)
        assert files_of(tmp_path / "made") == files_of(tmp_path / "written")


def test_a_box_is_excluded_where_all_its_tiles_are_and_each_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    shape = (130, 200, 260)
    free = rng.random((3, 4, 5)) < 0.15
    values = np.full(shape, 3, np.uint8)
    for place in np.argwhere(free):
        spot = [rng.integers(64 * p, min(64 * p + 64, n)) for p, n in zip(place, shape, strict=True)]
        values[tuple(spot)] = 1
    write_volume(tmp_path / "m.zarr", values, VOXEL_NM)
    masks = (MaskParameters(volume=str(tmp_path / "m.zarr"), values=(3,)),)
    read: list[Box] = []

    def noting(masks: Any, box: Box) -> Any:
        read.append(box)
        return read_masks(masks, box)

    monkeypatch.setattr("apps.inference.excluded.read_masks", noting)
    tiles = ExcludedTiles(masks, Box.of((0, 0, 0), shape))
    found = []
    for _ in range(300):
        a, b = (np.array([rng.integers(0, n) for n in shape]) for _ in range(2))
        low, high = np.minimum(a, b), np.maximum(a, b) + 1
        touched = tuple(slice(int(lo) // 64, (int(hi) - 1) // 64 + 1) for lo, hi in zip(low, high, strict=True))
        box = Box.between(tuple(low.tolist()), tuple(high.tolist()))
        assert tiles.hold(box) == (not free[touched].any())
        found.append(tiles.hold(box))
    assert 20 < sum(found) < 280
    known = len(read)
    assert tiles.hold(Box.of((0, 0, 0), shape)) is False
    for number in range(3):
        tiles.hold(Box.of((64 * number, 0, 0), (2, *shape[1:])))
    assert len(read) <= known + 3, "what is known is not read again"
    assert not ExcludedTiles((), Box.of((0, 0, 0), shape)).hold(Box.of((0, 0, 0), (5, 5, 5)))


def test_what_cannot_be_read_is_for_the_box_to_say(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, "m.zarr", (slice(None),), shape=(64, 64, 192))
    tiles = ExcludedTiles((mask,), Box.of((0, 0, 0), (64, 64, 192)))
    for chunk in (tmp_path / "m.zarr" / "0" / "c").rglob("2"):
        chunk.write_bytes(b"damaged")
    assert tiles.hold(Box.of((0, 0, 0), (64, 64, 128)))
    assert not tiles.hold(Box.of((0, 0, 100), (64, 64, 40)))


@pytest.mark.parametrize("voxels", [1, 7, 8, 9, 4096])
def test_the_digest_of_what_is_excluded_wholly(voxels: int) -> None:
    assert digest_of_all(voxels) == digest(np.ones((1, 1, voxels), np.bool_))
    assert digest_of_all(voxels) != digest(np.zeros((1, 1, voxels), np.bool_))
