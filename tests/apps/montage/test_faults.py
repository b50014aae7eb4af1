"""What goes wrong at the microscope and on disks: each case ends in a right result or in a report that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.montage.parameters import MontageParameters
from apps.montage.records import SectionRecord
from apps.montage.stage import MontageResult, run
from tests.apps.montage.samples import Section, cut, write, write_table

SEED = 11


def montage(table: Path, output: Path, **more: Any) -> tuple[MontageResult, SectionRecord]:
    given: dict[str, Any] = {"tiles": str(table), "output": str(output), "search": 20, "chunk": 128, "blend": 8}
    result = run(MontageParameters(**{**given, **more}), silent)
    return result, SectionRecord.load(result.sections[0].record)


def faults_of(record: SectionRecord) -> list[tuple[str, str | None]]:
    return [(fault.kind, fault.path) for fault in record.faults]


def error_of(record: SectionRecord, section: Section, without: tuple[int, ...] = ()) -> float:
    """RMS error of the connected tiles, but for those at the indices `without`."""
    found = {tile.path: (tile.y, tile.x) for tile in record.tiles if tile.connected}
    kept = [n for n in range(len(section.tiles)) if n not in without]
    return Section([], section.true[kept], section.nominal[kept]).rms(np.array([found[name(n)] for n in kept]))


def name(number: int) -> str:
    return f"tiles/000_{number:03d}.tif"


def rows_of(section: Section) -> list[dict[str, object]]:
    return [{"path": name(n), "section": 0, "x": x, "y": y} for n, (y, x) in enumerate(section.nominal)]


def remove(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def make_empty(file: Path) -> None:
    file.write_bytes(b"")


def make_blank(file: Path) -> None:
    tifffile.imwrite(file, np.full_like(tifffile.imread(file), 130))


def make_smaller(file: Path) -> None:
    tifffile.imwrite(file, tifffile.imread(file)[:-7])


def make_colour(file: Path) -> None:
    Image.fromarray(np.stack([tifffile.imread(file)] * 3, axis=-1)).save(file)


def make_float(file: Path) -> None:
    grey = tifffile.imread(file).astype(np.float32)
    grey[3, 5] = np.nan
    tifffile.imwrite(file, grey)


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (remove, "missing_file"),
        (make_folder, "missing_file"),
        (cut_short, "unreadable_file"),
        (make_empty, "unreadable_file"),
        (make_blank, "blank_tile"),
        (make_smaller, "wrong_size"),
        (make_colour, "not_grey"),
        (make_float, "not_grey"),
    ],
)
def test_a_tile_that_cannot_be_used_is_named_and_the_others_are_put_together(
    tmp_path: Path, spoil: Callable[[Path], None], kind: str
) -> None:
    section = cut(seed=SEED)
    table = write(tmp_path, {0: section})
    spoil(tmp_path / name(4))
    result, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [(kind, name(4))] and result.faults == 1
    assert record.faults[0].message.endswith("it is left out") and name(4) in record.faults[0].message
    assert len(record.tiles) == 8 and error_of(record, section, (4,)) < 0.15
    image = open_volume(str(tmp_path / "out" / "sections" / "00000.zarr")).read()[0]
    middle = image[image.shape[0] // 2 - 20 : image.shape[0] // 2 + 20, image.shape[1] // 2 - 20 :][:, :40]
    assert not middle.any()  # a hole that shows, not something made up


def test_a_tile_that_the_table_does_not_have(tmp_path: Path) -> None:
    section = cut(seed=SEED)
    table = write(tmp_path, {0: section})
    rows = rows_of(section)
    write_table(table, rows[:4] + rows[5:])
    result, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [("absent_tile", None)] and result.faults == 1
    y, x = section.nominal[4]
    assert f"(x {x:.0f}, y {y:.0f})" in record.faults[0].message
    assert error_of(record, section, (4,)) < 0.15


def test_a_row_that_stands_twice(tmp_path: Path) -> None:
    section = cut(seed=SEED)
    table = write(tmp_path, {0: section})
    write_table(table, [*rows_of(section), {"path": name(3), "section": 0, "x": 700.0, "y": 900.0}])
    _, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [("repeated_row", name(3))] and len(record.tiles) == 9
    assert error_of(record, section) < 0.15


def test_a_tile_that_was_imaged_again(tmp_path: Path) -> None:
    """The first try is out of focus; the microscope adds the second to the end of its table."""
    section = cut(seed=SEED)
    table = write(tmp_path, {0: section})
    tifffile.imwrite(tmp_path / "tiles/again.tif", section.tiles[3])
    tifffile.imwrite(tmp_path / name(3), section.tiles[3] // 8 + 100)
    rows = rows_of(section)
    write_table(table, [*rows, {**rows[3], "path": "tiles/again.tif"}])
    _, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [("superseded_tile", name(3))]
    assert [tile.path for tile in record.tiles][-1] == "tiles/again.tif" and len(record.tiles) == 9
    assert all(tile.connected for tile in record.tiles)


@pytest.mark.parametrize("copy", [2, 8])
def test_an_image_that_was_saved_under_two_names(tmp_path: Path, copy: int) -> None:
    """Whichever comes first in the table: the copy that does not fit its neighbours is the one that is not drawn."""
    section = cut(seed=SEED)
    original = 10 - copy
    section.tiles[copy] = section.tiles[original]
    _, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    kinds = dict(faults_of(record))
    assert kinds == {"repeated_image": name(copy), "disconnected_tile": name(copy)}
    assert [tile.path for tile in record.tiles if not tile.rendered] == [name(copy)]
    assert error_of(record, section, (copy,)) < 0.15


def test_one_16_bit_tile_among_8_bit_ones(tmp_path: Path) -> None:
    section = cut(seed=SEED, drift=0.0)
    table = write(tmp_path, {0: section})
    tifffile.imwrite(tmp_path / name(4), section.tiles[4].astype(np.uint16) * 50 + 20000)
    _, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [("mixed_depth", name(4))]
    assert error_of(record, section) < 0.15 and all(tile.rendered for tile in record.tiles)
    image = open_volume(str(tmp_path / "out" / "sections" / "00000.zarr")).read()[0].astype(float)
    assert abs(image[130:200, 130:200].mean() - image[10:80, 10:80].mean()) < 15  # it looks like the others


def test_a_tile_of_something_else_stays_where_the_stage_put_it(tmp_path: Path) -> None:
    section = cut(seed=SEED)
    section.tiles[4] = cut(seed=SEED + 1).tiles[0]
    _, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    assert faults_of(record) == [("disconnected_tile", name(4))]
    assert "section 0" in record.faults[0].message and "8 of 9 tiles" in record.faults[0].message
    assert [tile.connected for tile in record.tiles] == [True] * 4 + [False] + [True] * 4
    assert error_of(record, section, (4,)) < 0.15
    stage = section.nominal[4] - record.origin
    assert (record.tiles[4].y, record.tiles[4].x) == pytest.approx(tuple(stage)) and record.tiles[4].rendered


def test_two_tiles_that_the_table_has_in_each_others_place(tmp_path: Path) -> None:
    section = cut(seed=SEED)
    table = write(tmp_path, {0: section})
    rows = rows_of(section)
    rows[0]["path"], rows[4]["path"] = rows[4]["path"], rows[0]["path"]
    write_table(table, rows)
    _, record = montage(table, tmp_path / "out")
    assert sorted(faults_of(record)) == [("disconnected_tile", name(0)), ("disconnected_tile", name(4))]
    assert error_of(record, section, (0, 4)) < 0.15


@pytest.mark.parametrize("turn", [np.rot90, np.flipud, lambda tile: 255 - tile])
def test_a_tile_that_is_turned_or_inverted_is_a_disconnected_tile(
    tmp_path: Path, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    section = cut(seed=SEED)
    section.tiles[8] = np.ascontiguousarray(turn(section.tiles[8]))
    _, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    assert faults_of(record) == [("disconnected_tile", name(8))]
    assert error_of(record, section, (8,)) < 0.15


def test_a_tile_that_goes_while_its_section_is_made_is_named(tmp_path: Path) -> None:
    table = write(tmp_path, {0: cut(seed=SEED, grid=(1, 2))})

    def delete(done: float, total: float, what: str = "") -> None:
        if "measuring" in what:
            (tmp_path / name(1)).unlink()

    parameters = MontageParameters(tiles=str(table), output=str(tmp_path / "out"), search=20, cache_mib=0)
    with pytest.raises(DataError, match=f"{name(1)}: has gone while section 0 was made; run again"):
        run(parameters, delete)
    assert not (tmp_path / "out" / "sections" / "00000.json").exists()
    result, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [("missing_file", name(1))] and result.faults == 1


def test_resin_without_structure_is_a_disconnected_tile(tmp_path: Path) -> None:
    section = cut(seed=SEED)
    noise = np.random.default_rng(SEED).normal(190, 8, section.tiles[0].shape)
    section.tiles[0] = np.rint(noise).astype(np.uint8)
    _, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    assert faults_of(record) == [("disconnected_tile", name(0))]
    assert error_of(record, section, (0,)) < 0.15


def test_a_stage_that_lost_a_row_of_tiles(tmp_path: Path) -> None:
    """The last row lies a hundred pixels lower than planned: nothing overlaps where the search looks."""
    section = cut(seed=SEED, jitter=2)
    section.nominal[6:, 0] -= 60
    _, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    assert faults_of(record) == [("disconnected_tile", name(n)) for n in (6, 7, 8)]
    assert error_of(record, section, (6, 7, 8)) < 0.15
    wider, found = montage(write(tmp_path, {0: section}), tmp_path / "out", search=80)
    assert wider.faults == 0 and error_of(found, section) < 0.15


def test_a_blank_section_has_a_record_and_no_image_and_the_next_is_done(tmp_path: Path) -> None:
    blank, good = cut(seed=SEED, grid=(2, 2)), cut(seed=SEED + 1, grid=(2, 2))
    table = write(tmp_path, {0: blank, 1: good})
    montage(table, tmp_path / "out")
    for number in range(4):
        make_blank(tmp_path / name(number))
    result, record = montage(table, tmp_path / "out")
    assert [kind for kind, _ in faults_of(record)] == ["blank_tile"] * 4 + ["blank_section"]
    assert record.shape == (0, 0) and record.scores.seam_residual is None and result.sections[0].image is None
    assert not (tmp_path / "out" / "sections" / "00000.zarr").exists()
    assert result.sections[1].faults == () and result.sections[1].connected == 4


def test_a_section_whose_files_are_all_missing_is_named(tmp_path: Path) -> None:
    table = write(tmp_path, {0: cut(seed=SEED, grid=(2, 2)), 1: cut(seed=SEED + 1, grid=(2, 2))})
    for number in range(4):
        remove(tmp_path / name(number))
    result, record = montage(table, tmp_path / "out")
    assert [kind for kind, _ in faults_of(record)] == ["missing_file"] * 4 + ["blank_section"]
    assert result.sections[1].connected == 4


def test_a_section_out_of_focus_is_left_to_the_stage_and_said(tmp_path: Path) -> None:
    section = cut(seed=SEED)
    rng = np.random.default_rng(SEED)
    section.tiles = [np.rint(rng.normal(128, 15, tile.shape)).astype(np.uint8) for tile in section.tiles]
    _, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    kinds = [kind for kind, _ in faults_of(record)]
    assert kinds[0] == "unmatched_section" and set(kinds[1:]) == {"disconnected_tile"}
    assert record.scores.pairs_used == 0.0 and record.scores.overlap_correlation is not None
    assert abs(record.scores.overlap_correlation) < 0.2 and record.scores.seam_residual is None
    placed = np.array([(tile.y, tile.x) for tile in record.tiles])
    assert np.allclose(placed - placed[0], section.nominal - section.nominal[0])


def test_charging_and_a_fold_do_not_tear_a_section(tmp_path: Path) -> None:
    """A bright band over a tile's overlap, and a dark crease along another."""
    section = cut(extent=160, overlap=36, seed=SEED)
    bright = section.tiles[1].astype(float)
    bright[:, 130:] += 90 * np.exp(-((np.arange(160) - 80) ** 2) / 1500)[:, None]
    section.tiles[1] = np.clip(bright, 0, 255).astype(np.uint8)
    section.tiles[5][140:148] = 40
    result, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    assert result.faults == 0 and error_of(record, section) < 0.2


def test_a_single_tile_is_a_section(tmp_path: Path) -> None:
    section = cut(grid=(1, 1), seed=SEED)
    result, record = montage(write(tmp_path, {0: section}), tmp_path / "out")
    assert result.faults == 0 and record.pairs == () and record.scores.overlap_correlation is None
    image = open_volume(str(tmp_path / "out" / "sections" / "00000.zarr")).read()[0]
    assert np.array_equal(image, np.maximum(section.tiles[0], 1))


def test_a_section_that_was_imaged_twice_under_one_number(tmp_path: Path) -> None:
    """Both times all tiles, at the same places: the later images are taken, the earlier ones named."""
    first, second = cut(seed=SEED, grid=(2, 2)), cut(seed=SEED + 1, grid=(2, 2))
    table = write(tmp_path, {0: first, 1: second})
    later = [{"path": f"tiles/001_{n:03d}.tif", "section": 0, "x": x, "y": y} for n, (y, x) in enumerate(first.nominal)]
    write_table(table, [*rows_of(first), *later])
    _, record = montage(table, tmp_path / "out")
    assert faults_of(record) == [("superseded_tile", name(n)) for n in range(4)]
    assert second.rms(np.array([(tile.y, tile.x) for tile in record.tiles])) < 0.15
