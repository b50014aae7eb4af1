from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from apps.core.errors import DataError, ParameterError
from apps.ffn.checkpoint import (
    CheckpointInfo,
    find_own_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from apps.ffn.model import initial_weights
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, TINY, needs_fib25


def save(folder: Path, step: int = 7) -> None:
    info = CheckpointInfo(model=TINY, image_mean=MEAN, image_std=STD, step=step, provenance={"seed": 1})
    save_checkpoint(folder, info, initial_weights(TINY, 1), {"step": np.array(step)})


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "c", 7)
    save(tmp_path / "c", 8)
    loaded = load_checkpoint(str(tmp_path / "c"))
    assert (loaded.model, loaded.step, loaded.normalisation(None, None)) == (TINY, 8, (MEAN, STD))
    assert all(np.array_equal(loaded.weights[name], value) for name, value in initial_weights(TINY, 1).items())
    assert int(read_state(tmp_path / "c")["step"]) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_field_of_view_can_be_replaced(tmp_path: Path) -> None:
    save(tmp_path / "c")
    model = load_checkpoint(str(tmp_path / "c"), fov=(11, 11, 11), deltas=(3, 3, 3)).model
    assert (model.fov, model.deltas, model.depth) == ((11, 11, 11), (3, 3, 3), TINY.depth)
    with pytest.raises(ParameterError, match="odd"):
        load_checkpoint(str(tmp_path / "c"), fov=(10, 11, 11))


@pytest.mark.parametrize("name", ["weights.npz", "model.json"])
@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, name: str, keep: float) -> None:
    save(tmp_path / "c")
    file = tmp_path / "c" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(DataError, match=str(tmp_path / "c")):
        load_checkpoint(str(tmp_path / "c"))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    save(tmp_path / "c")
    file = tmp_path / "c" / "weights.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(str(tmp_path / "c"))


def test_missing_parts_and_missing_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such checkpoint"):
        load_checkpoint(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"has no model.json"):
        load_checkpoint(str(tmp_path))
    save(tmp_path / "c")
    (tmp_path / "c" / "weights.npz").unlink()
    with pytest.raises(DataError, match=r"has no weights.npz"):
        load_checkpoint(str(tmp_path / "c"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "c")
    text = (tmp_path / "c" / "model.json").read_text()
    (tmp_path / "c" / "model.json").write_text(text.replace('"depth": 2', '"depth": 3'))
    with pytest.raises(DataError, match="conv2_a/weights"):
        load_checkpoint(str(tmp_path / "c"))


def test_a_checkpoint_put_away_by_a_killed_swap_is_found(tmp_path: Path) -> None:
    save(tmp_path / "c")
    (tmp_path / "c").rename(tmp_path / ".c.old")
    found = find_own_checkpoint(tmp_path / "c")
    assert found is not None
    assert load_checkpoint(str(found)).step == 7
    assert find_own_checkpoint(tmp_path / "other") is None


@needs_fib25
def test_google_checkpoint_describes_itself() -> None:
    loaded = load_checkpoint(GOOGLE_CHECKPOINT)
    assert (loaded.model.depth, loaded.model.features) == (12, 32)
    assert (loaded.model.fov, loaded.model.deltas) == ((33, 33, 33), (8, 8, 8))
    assert loaded.step == 27_465_036
    assert sum(value.size for value in loaded.weights.values()) == 638_433
    assert loaded.normalisation(128.0, 33.0) == (128.0, 33.0)
    with pytest.raises(ParameterError, match="image_mean"):
        loaded.normalisation(None, 33.0)


@needs_fib25
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_truncated_google_checkpoint_is_named(tmp_path: Path, suffix: str) -> None:
    for part in (".index", ".data-00000-of-00001"):
        shutil.copyfile(GOOGLE_CHECKPOINT + part, tmp_path / f"model{part}")
    damaged = tmp_path / f"model{suffix}"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"{tmp_path}/model: .*(damaged|truncated)"):
        load_checkpoint(str(tmp_path / "model"))
