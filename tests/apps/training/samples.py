"""Trainings of seconds, and what two equal ones have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apps.ffn.tracker import ROW_SECONDS, SECONDS
from apps.training.parameters import TrainingParameters
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data


def parameters(folder: Path, **fields: Any) -> TrainingParameters:
    """A training of the tiny network on the tiny volume in `folder`, into `folder`/out."""
    data = tiny_data(folder, margin=8 if fields.get("policy") == "max_pred_moves" else 6)
    values: dict[str, Any] = {
        "volumes": data.volumes,
        "output": str(folder / "out"),
        "model": TINY,
        "learning_rate": 0.01,
        "batch_size": 4,
        "steps": 40,
        "checkpoint_every": 10,
        "curve_every": 5,
        "seed": 3,
        "image_mean": MEAN,
        "image_std": STD,
    }
    return TrainingParameters(**{**values, **fields})


def arrays(checkpoint: str | Path, file: str) -> dict[str, np.ndarray]:
    with np.load(Path(checkpoint) / file) as found:
        return {name: found[name] for name in found.files}


def assert_same_training(one: str | Path, other: str | Path) -> None:
    """Equal to the bit: weights, optimiser, canvases, streams, learning curve, evaluations (clock times apart)."""
    files = {path.name for path in Path(one).iterdir()}
    assert files == {path.name for path in Path(other).iterdir()}
    for file in files - {"model.json"}:
        left, right = arrays(one, file), arrays(other, file)
        assert left.keys() == right.keys()
        for name in left.keys() - {"seconds"}:
            a, b = left[name], right[name]
            if name in ("rows", "row"):
                a, b = (np.delete(rows, [ROW_SECONDS, SECONDS], axis=-1) for rows in (a, b))
            elif name == "evaluations":
                a, b = a[..., :-1], b[..., :-1]
            assert a.tobytes() == b.tobytes(), (file, name)
