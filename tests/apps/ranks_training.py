"""Trainings as their ranks see them, for tests/apps/test_training_ranks.py: `ranks_training.py SCENARIO:FOLDER ...`.

One after the other in one launch, as most of what a rank costs is to start TensorFlow.  Each runs the stage on
FOLDER/parameters.json, and one that fails ends the launch as it always does.  Scenarios:

`plain`: nothing else.
`trial`: the stage `trial`.
`shares`: writes FOLDER/RANK.json, what each rank trained on and its weights' hash.
`slow`: sleeps after every step, to be killed in the middle.
`nan`: a NaN in the third batch of rank 1.
`refused`: writes the exit code of each rank to FOLDER/RANK.code where the stage would end it, and goes on.
`torn`: so too, and each rank has a parameters file of its own, FOLDER/RANK/parameters.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from apps.core.ranks import read_launch
from apps.core.stage import stage_main
from apps.ffn.trainer import Trainer
from apps.training.stage import STAGE
from apps.trial.stage import STAGE as TRIAL

PAUSE_S = 0.08

_train_step, _gather = Trainer.train_step, Trainer._gather


def train(folder: Path) -> int:
    """Run the stage; returns its exit code."""
    return stage_main(STAGE, [str(folder / "parameters.json")])


def try_out(folder: Path) -> int:
    return stage_main(TRIAL, [str(folder / "parameters.json")])


def train_and_record(folder: Path) -> int:
    """Have every rank write what it gathered and how its weights ended."""
    seen: list[str] = []

    def train_step(trainer: Trainer) -> Any:
        row = _train_step(trainer)
        seen.append(hashlib.sha256(trainer._inputs.tobytes()).hexdigest())
        weights = hashlib.sha256(b"".join(value.tobytes() for value in trainer.network.weights().values()))
        report = {"seen": seen, "weights": weights.hexdigest(), "loss": trainer.loss}
        (folder / f"{read_launch().rank}.json").write_text(json.dumps(report))
        return row

    with patch.object(Trainer, "train_step", train_step):
        return train(folder)


def train_slowly(folder: Path) -> int:
    def train_step(trainer: Trainer) -> Any:
        row = _train_step(trainer)
        time.sleep(PAUSE_S)
        return row

    with patch.object(Trainer, "train_step", train_step):
        return train(folder)


def spoil_rank_1(folder: Path) -> int:
    def gather(trainer: Trainer, place: int, slot: Any) -> Any:
        view = _gather(trainer, place, slot)
        if trainer.step == 2 and read_launch().rank == 1:
            trainer._inputs[0, place] = np.nan
        return view

    with patch.object(Trainer, "_gather", gather):
        return train(folder)


def be_refused(folder: Path) -> int:
    """Returns 0 where the stage ended with an error on this rank."""
    return _write_code(folder, folder)


def be_torn(folder: Path) -> int:
    """As `be_refused`, with this rank's own parameters."""
    return _write_code(folder / str(read_launch().rank), folder)


def _write_code(parameters: Path, folder: Path) -> int:
    try:
        with patch("apps.core.stage.end_all_ranks", sys.exit):  # the others are not ended, and this one is caught
            train(parameters)
    except SystemExit as end:
        (folder / f"{read_launch().rank}.code").write_text(str(end.code))
        return 0
    return 1


SCENARIOS: dict[str, Callable[[Path], int]] = {
    "plain": train,
    "trial": try_out,
    "shares": train_and_record,
    "slow": train_slowly,
    "nan": spoil_rank_1,
    "refused": be_refused,
    "torn": be_torn,
}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        scenario, _, place = argument.partition(":")
        if code := SCENARIOS[scenario](Path(place)):
            sys.exit(code)
