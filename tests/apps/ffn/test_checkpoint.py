from __future__ import annotations

import contextlib
import json
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
    voxel_size_of,
)
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.variants import VARIANTS
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, TINY, needs_fib25

VOXEL = (40.0, 8.0, 8.0)


def save(folder: Path, step: int = 7) -> None:
    info = CheckpointInfo(
        model=TINY, image_mean=MEAN, image_std=STD, step=step, provenance={"seed": 1}, voxel_size_nm=VOXEL
    )
    save_checkpoint(folder, info, initial_weights(TINY, 1), {"step": np.array(step)})


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "c", 7)
    save(tmp_path / "c", 8)
    loaded = load_checkpoint(str(tmp_path / "c"))
    assert (loaded.model, loaded.step, loaded.normalisation(None, None)) == (TINY, 8, (MEAN, STD))
    assert all(np.array_equal(loaded.weights[name], value) for name, value in initial_weights(TINY, 1).items())
    assert int(read_state(tmp_path / "c")["step"]) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_of_before_voxel_sizes_were_kept_loads(tmp_path: Path) -> None:
    save(tmp_path / "c")
    file = tmp_path / "c" / "model.json"
    assert (voxel_size_of(str(tmp_path / "c")), load_checkpoint(str(tmp_path / "c")).voxel_size_nm) == (VOXEL, VOXEL)
    kept = json.loads(file.read_text())
    assert kept.pop("voxel_size_nm") == list(VOXEL)
    file.write_text(json.dumps(kept))
    assert voxel_size_of(str(tmp_path / "c")) is load_checkpoint(str(tmp_path / "c")).voxel_size_nm is None


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


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.99])
def test_a_truncated_state_is_named(tmp_path: Path, keep: float) -> None:
    save(tmp_path / "c")
    file = tmp_path / "c" / "state.npz"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(DataError, match=rf"{tmp_path}/c: is a damaged checkpoint \(state.npz"):
        read_state(tmp_path / "c")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\x80\x02garbage\xff", "model.json"),
        (b"{}", "model"),
        (b"[1, 2]", "model.json"),
        (b'{"model": {"variant": "unet"}, "image_mean": 0.0, "image_std": 1.0, "step": 0, "provenance": {}}', "unet"),
        (
            b'{"model": {"kernel": [2, 3, 3]}, "image_mean": 0.0, "image_std": 1.0, "step": 0, "provenance": {}}',
            "kernel",
        ),
        (b'{"model": {"wings": 2}, "image_mean": 0.0, "image_std": 1.0, "step": 0, "provenance": {}}', "wings"),
    ],
)
def test_a_description_that_says_nothing_known_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    save(tmp_path / "c")
    (tmp_path / "c" / "model.json").write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path}/c: is a damaged checkpoint .*{word}"):
        load_checkpoint(str(tmp_path / "c"))


def test_every_variant_round_trips(tmp_path: Path) -> None:
    for variant in VARIANTS:
        model = ModelParameters(variant=variant, normalisation="group", groups=2, taper=2.0, features=4)
        info = CheckpointInfo(model=model, image_mean=MEAN, image_std=STD, step=1, provenance={})
        save_checkpoint(tmp_path / variant, info, initial_weights(model, 2), {})
        loaded = load_checkpoint(str(tmp_path / variant))
        assert loaded.model == model
        assert all(np.array_equal(loaded.weights[name], value) for name, value in initial_weights(model, 2).items())


def test_weights_of_another_variant_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "c")
    text = (tmp_path / "c" / "model.json").read_text()
    (tmp_path / "c" / "model.json").write_text(text.replace('"convstack"', '"separable"'))
    with pytest.raises(DataError, match=r"conv0_b/weights.*separable of depth 2"):
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
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_google_checkpoint_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    for part in (".index", ".data-00000-of-00001"):
        shutil.copyfile(GOOGLE_CHECKPOINT + part, tmp_path / f"model{part}")
    damaged = tmp_path / f"model{suffix}"
    damaged.write_bytes(damaged.read_bytes()[: int(keep * damaged.stat().st_size)])
    with pytest.raises(DataError, match=rf"{tmp_path}/model: .*(damaged|truncated)"):
        load_checkpoint(str(tmp_path / "model"))


@needs_fib25
def test_a_google_checkpoint_without_its_data_is_named(tmp_path: Path) -> None:
    shutil.copyfile(GOOGLE_CHECKPOINT + ".index", tmp_path / "model.index")
    with pytest.raises(DataError, match=rf"{tmp_path}/model: "):
        load_checkpoint(str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["weights.npz", "model.json"])
def test_any_damaged_byte_is_an_error_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    """Or none at all, where it is a byte that says nothing; never another kind of error."""
    save(tmp_path / "c")
    file = tmp_path / "c" / name
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    # Flags and compression of the first member among them, which zipfile has errors of its own for.
    places = [*range(4, 12), *rng.integers(len(whole), size=150).tolist()]
    for place in places:
        data = bytearray(whole)
        data[place] = int(rng.integers(128, 256))
        file.write_bytes(bytes(data))
        with contextlib.suppress(DataError):
            load_checkpoint(str(tmp_path / "c"))
    central = whole.rfind(b"PK\x01\x02")
    if central >= 0:
        data = bytearray(whole)
        data[central + 10] = 77  # a compression that nobody knows
        file.write_bytes(bytes(data))
        with pytest.raises(DataError, match="is a damaged checkpoint"):
            load_checkpoint(str(tmp_path / "c"))
