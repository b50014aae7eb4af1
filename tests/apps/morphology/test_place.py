"""Where the outputs of many files are made: what a killed run leaves is removed, in whatever order it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apps.morphology.place import Workplace


def test_what_is_left_over_goes_whatever_the_name(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "out[1]", "meshes", {"a": 1})
    with place.hold(alone=True):
        place.result.mkdir()
        (place.folder / "units").mkdir()
        place.publish({})
    assert [path.name for path in tmp_path.iterdir()] == ["out[1]"]


@pytest.mark.parametrize("order", [sorted, lambda paths: sorted(paths, reverse=True)])
def test_a_kill_while_clearing_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Callable[[list[Path]], list[Path]]
) -> None:
    place = Workplace(tmp_path / "out", "meshes", {"a": 1})
    with place.hold(alone=True):
        place.result.mkdir()
        place.publish({})
    left = place.folder.with_name(f"{place.folder.name}.removed") / "units"
    left.mkdir(parents=True)
    (left / "1").write_text("")
    found = Workplace.leftovers
    monkeypatch.setattr(Workplace, "leftovers", lambda self: order(found(self)))
    assert place.is_complete(alone=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
