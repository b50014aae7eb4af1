"""What the ranks of tests/apps/ffn/test_ranks.py run: `ranks_program.py SCENARIO FOLDER`.

`raises`: all collectives, reported to FOLDER/RANK.json; then rank 1 ends as a stage that fails.
`killed`: rank 1 ends by kill -9.
Rank 0 waits for rank 1 then, and what it sees goes to FOLDER/lost.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.errors import ParameterError, TransientError
from apps.core.ranks import Launch, end_all_ranks
from apps.ffn.ranks import HorovodRanks, Ranks, start_ranks


def collectives(ranks: Ranks) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    rank = ranks.rank

    @tf.function
    def mean() -> Any:
        factor = tf.constant([1.0 + rank])
        return ranks.average([factor, tf.cast(tf.constant([10.0, 20.0]) * factor, tf.bfloat16)])

    @tf.function
    def step(number: Any) -> Any:
        return ranks.average([number * (1.0 + rank)])[0]

    averaged = mean()
    means = [float(step(tf.constant(float(number)))) for number in range(5)]
    total = ranks.total(np.array([[0.1 * (rank + 1), 1e300 * (rank + 1)], [1.0 + rank, -rank]]))
    scalar = float(ranks.total(np.array(1.0 + rank)))
    variables = [
        keras.Variable(np.array([1.0, 2.0]) * (rank + 1), dtype="float32"),
        keras.Variable(7 + rank, dtype="int64"),
    ]
    ranks.broadcast(variables)
    ranks.agree("configuration", "the same " * 100)
    disagreement = ""
    try:
        ranks.agree("weights", f"of rank {rank}")
    except ParameterError as error:
        disagreement = str(error)
    mismatch = ""
    try:
        HorovodRanks(Launch(3, 5, "mpiexec"), threads=1)
    except ParameterError as error:
        mismatch = str(error)
    time.sleep(rank)
    came = time.time()
    ranks.barrier()
    return {
        "rank": rank,
        "size": ranks.size,
        "mean": [tensor.numpy().tolist() for tensor in averaged],
        "dtypes": [tensor.dtype.name for tensor in averaged],
        "means": means,
        "total": total.tolist(),
        "scalar": scalar,
        "variables": [variable.numpy().tolist() for variable in variables],
        "disagreement": disagreement,
        "mismatch": mismatch,
        "came": came,
        "passed": time.time(),
    }


def lose_rank_1(ranks: Ranks, how: str) -> dict[str, Any]:
    """Rank 1 ends, as a stage that raises DivergedError or by kill -9, while rank 0 waits for it.

    Returns what rank 0 sees.
    """
    ranks.barrier()
    if ranks.rank == 1:
        time.sleep(0.5)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        end_all_ranks(3)
    try:
        ranks.barrier()
    except TransientError as error:
        return {"error": type(error).__name__}
    return {"error": "none"}


def main() -> None:
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    ranks = start_ranks(threads=1)
    if scenario == "raises":
        (folder / f"{ranks.rank}.json").write_text(json.dumps(collectives(ranks)))
    (folder / "lost.json").write_text(json.dumps(lose_rank_1(ranks, scenario)))
    end_all_ranks(75)


if __name__ == "__main__":
    main()
