"""A training as its ranks see it, for tests/apps/test_training_ranks.py: `ranks_training.py SCENARIO FOLDER`.

Scenario `shares` writes FOLDER/RANK.json, what each rank trained on and its weights' hash; `nan` puts a NaN into the
third batch of rank 1, and is otherwise the stage.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.ranks import read_launch
from apps.core.stage import stage_main
from apps.ffn.trainer import Trainer
from apps.training.stage import STAGE

_train_step, _gather = Trainer.train_step, Trainer._gather


def record_shares(folder: Path) -> None:
    """Have every rank write what it gathered and how its weights ended."""
    seen: list[str] = []

    def train_step(trainer: Trainer) -> Any:
        row = _train_step(trainer)
        seen.append(hashlib.sha256(trainer._inputs.tobytes()).hexdigest())
        weights = hashlib.sha256(b"".join(value.tobytes() for value in trainer.network.weights().values()))
        report = {"seen": seen, "weights": weights.hexdigest(), "loss": trainer.loss}
        (folder / f"{read_launch().rank}.json").write_text(json.dumps(report))
        return row

    Trainer.train_step = train_step  # type: ignore[method-assign, assignment]


def spoil_rank_1() -> None:
    def gather(trainer: Trainer, place: int, slot: Any) -> Any:
        view = _gather(trainer, place, slot)
        if trainer.step == 2 and read_launch().rank == 1:
            trainer._inputs[0, place] = np.nan
        return view

    Trainer._gather = gather  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    scenario, place = sys.argv[1], Path(sys.argv[2])
    if scenario == "shares":
        record_shares(place)
    else:
        spoil_rank_1()
    sys.exit(stage_main(STAGE, [str(place / "parameters.json")]))
