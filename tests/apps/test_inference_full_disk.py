"""The inference stage on a full disk: a message that names it, what is finished stays, and with room the same bytes."""

from __future__ import annotations

from pathlib import Path

from apps.core.progress import silent
from apps.core.subvolumes import piece_path
from apps.inference.outputs import log_path, summary_path
from apps.inference.stage import run
from tests.apps.test_inference import contents, count_looks, grid_parameters
from tests.full_disk import little_room, refused_for_want_of_room


def test_a_full_disk_is_said_and_with_room_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    for name in ("undisturbed", "full"):
        (tmp_path / name).mkdir()
    looks = count_looks(lambda: run(grid_parameters(tmp_path / "undisturbed"), silent))
    expected = contents(tmp_path / "undisturbed" / "pieces")
    sizes = {name: len(data) for name, data in expected.items()}
    tables = [piece_path("", number).with_suffix(".parquet") for number in range(2)]
    # The subvolume with the smaller table first: it is finished when there is no room for the other's.
    smaller, larger = sorted(range(2), key=lambda number: sizes[str(tables[number])])
    given = grid_parameters(tmp_path / "full", numbers=(smaller, larger))
    pieces = [piece_path(tmp_path / "full" / "pieces", number) for number in range(2)]

    def logged() -> int:
        return sum(log_path(piece).stat().st_size for piece in pieces if log_path(piece).exists())

    with (
        refused_for_want_of_room(r"\.flooding: cannot be written \(File too large\); free some space"),
        little_room(200),
    ):
        run(given, silent)
    empty = logged()
    with refused_for_want_of_room(r"\.flooding: cannot be written"), little_room(700):
        run(given, silent)
    assert logged() > empty, "objects that were found before stay"
    assert not any(summary_path(piece).exists() for piece in pieces)
    with (
        refused_for_want_of_room(rf"{pieces[larger].stem}\.parquet: cannot be written \(File too large\)"),
        little_room(sizes[str(tables[larger])] - 1),
    ):
        run(given, silent)
    assert [summary_path(pieces[number]).exists() for number in (smaller, larger)] == [True, False]
    finished = {path: path.stat().st_mtime_ns for path in pieces[smaller].parent.glob(f"{pieces[smaller].stem}*")}
    assert count_looks(lambda: run(given, silent)) < looks / 2, "what was flooded is not flooded again"
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(tmp_path / "full" / "pieces") == expected
