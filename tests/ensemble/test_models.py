"""The model registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import DataError, ParameterError, StateError
from ensemble.models import Model, aliases, checkpoint_of, find_model, list_names, register_model, versions
from tests.full_disk import little_room, refused_for_want_of_room


def checkpoint(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights.npz").write_text(content)
    return folder


def register(home: Path, source: Path, **changes: Any) -> Model:
    arguments: dict[str, Any] = {
        "name": "demo",
        "row": {"m:vi": 0.5},
        "reason": "the best",
        "inference": {"move": 0.9},
        "normalisation": (128.0, 33.0),
        "voxel_size_nm": (10.0, 10.0, 10.0),
        "campaign": "c",
    }
    arguments |= changes
    return register_model(home, checkpoint=source, **arguments)


def test_registered_model_is_found_by_name_version_and_alias(tmp_path: Path) -> None:
    model = register(tmp_path, checkpoint(tmp_path / "a", "1"))
    assert model.version == 1
    for reference in ("demo", "demo:1", "demo@champion"):
        assert find_model(tmp_path, reference) == model
    assert (checkpoint_of(tmp_path, model) / "weights.npz").read_text() == "1"
    assert list_names(tmp_path) == ["demo"]


def test_new_checkpoint_is_a_new_version_and_the_alias_moves(tmp_path: Path) -> None:
    register(tmp_path, checkpoint(tmp_path / "a", "1"))
    register(tmp_path, checkpoint(tmp_path / "b", "2"))
    assert [m.version for m in versions(tmp_path, "demo")] == [1, 2]
    assert find_model(tmp_path, "demo").version == 2
    assert find_model(tmp_path, "demo:1").version == 1


def test_a_full_disk_is_named_and_leaves_the_registry_as_it_was(tmp_path: Path) -> None:
    register(tmp_path, checkpoint(tmp_path / "a", "1"))
    large = checkpoint(tmp_path / "b", "2" * 100_000)
    with refused_for_want_of_room("models/demo/2: cannot be written"), little_room(50_000):
        register(tmp_path, large)
    assert [m.version for m in versions(tmp_path, "demo")] == [1]
    assert find_model(tmp_path, "demo").version == 1
    assert register(tmp_path, large).version == 2


def test_same_checkpoint_again_makes_nothing_new(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a", "1")
    first = register(tmp_path, source)
    register(tmp_path, checkpoint(tmp_path / "b", "2"))
    assert register(tmp_path, source, pointing=("champion",)) == first
    assert aliases(tmp_path, "demo") == {"champion": 1}
    assert register(tmp_path, source, inference={"move": 0.8}).version == 3
    assert register(tmp_path, source, voxel_size_nm=(8.0, 8.0, 8.0)).version == 4
    assert register(tmp_path, source, voxel_size_nm=None).version == 5


def test_changed_checkpoint_is_not_used(tmp_path: Path) -> None:
    model = register(tmp_path, checkpoint(tmp_path / "a", "1"))
    (tmp_path / "models/demo/1/checkpoint/weights.npz").write_text("other")
    with pytest.raises(DataError, match="is not the checkpoint that was registered"):
        checkpoint_of(tmp_path, model)


def test_killed_registration_leaves_no_version(tmp_path: Path) -> None:
    register(tmp_path, checkpoint(tmp_path / "a", "1"))
    half = tmp_path / "models/demo/.2.partial"
    half.mkdir()
    (half / "model.json").write_bytes((tmp_path / "models/demo/1/model.json").read_bytes())
    assert [m.version for m in versions(tmp_path, "demo")] == [1]
    assert register(tmp_path, checkpoint(tmp_path / "b", "2")).version == 2


@pytest.mark.parametrize(
    ("reference", "error", "text"),
    [
        ("other", StateError, "there are: demo"),
        ("demo:9", StateError, "no version 9; it has: 1"),
        ("demo@best", StateError, "no alias 'best'; it has: champion"),
        ("demo:x", ParameterError, "expected NAME"),
    ],
)
def test_unknown_models_are_named_with_what_there_is(
    tmp_path: Path, reference: str, error: type[Exception], text: str
) -> None:
    register(tmp_path, checkpoint(tmp_path / "a", "1"))
    with pytest.raises(error, match=text):
        find_model(tmp_path, reference)


def test_missing_checkpoint_registers_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such checkpoint"):
        register(tmp_path, tmp_path / "missing")
    assert list_names(tmp_path) == []
