"""The checkpoint of a training: what `apps.ffn.checkpoint` defines, and the streams of every rank.

`state.npz` holds what all ranks have in common, `streams-NNNNN.npz` what rank N alone knows.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from apps.core.errors import DataError, StateError
from apps.core.files import folder_in_the_making
from apps.ffn.checkpoint import (
    MODEL_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    CheckpointInfo,
    State,
    load_arrays,
    read_state,
    save_arrays,
    weights_digest,
)
from apps.ffn.model import Weights
from apps.ffn.ranks import Ranks

RANKS = "ranks"  # how many there were, in the trainer's state


def save_training(
    folder: Path,
    info: CheckpointInfo,
    weights: Weights,
    state: Mapping[str, NDArray[Any]],
    streams: Mapping[str, NDArray[Any]],
    ranks: Ranks,
) -> None:
    """Write the checkpoint in the place of an older one, atomically; called by all ranks.

    Raises ParameterError on all ranks where their weights differ, DataError where the folder cannot be written.
    """
    ranks.agree("weights", weights_digest(weights) if ranks.size > 1 else "")
    aside = folder.with_name(f".{folder.name}.streams")
    try:
        aside.mkdir(exist_ok=True)
        save_arrays(aside / _streams_file(ranks.rank), streams)
        ranks.barrier()
        if ranks.rank == 0:
            with folder_in_the_making(folder) as temporary:
                info.save(temporary / MODEL_FILE)
                save_arrays(temporary / WEIGHTS_FILE, weights)
                save_arrays(temporary / STATE_FILE, state)
                for rank in range(ranks.size):
                    (aside / _streams_file(rank)).rename(temporary / _streams_file(rank))
            shutil.rmtree(aside)
        ranks.barrier()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error


def read_training(folder: Path, ranks: Ranks) -> tuple[State, State]:
    """What all ranks have in common, and the streams of this rank.

    Raises DataError where the checkpoint is damaged, StateError where the training had another number of ranks.
    """
    state = read_state(folder)
    if RANKS not in state:
        raise DataError(f"{folder}: holds no training to go on with; give another output folder, or name it as init")
    had = int(state[RANKS])
    if had != ranks.size:
        raise StateError(
            f"{folder}: holds a training of {had} rank(s), this run has {ranks.size}; run as many ranks as before, or "
            "give another output folder and name this checkpoint as init"
        )
    return state, load_arrays(folder / _streams_file(ranks.rank))


def _streams_file(rank: int) -> str:
    return f"streams-{rank:05d}.npz"
