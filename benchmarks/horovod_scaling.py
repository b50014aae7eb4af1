"""Two Horovod ranks against one, a thread each and the same batch a rank: parallel efficiency, and overhead a step.

Two settings: one bound by communication (0.7 M parameters, a field of view of 5^3, batch 1), and the published network
(depth 12, 32 features, 33^3, batch 1).  Efficiency is the time of a step of one rank over that of two.  Two ranks on
one machine also share its caches and memory, so a second comparison is with two trainings that run at the same time
and know nothing of each other: what is left over is what the communication costs.  Rounds of all of them in turn.

Peers: the reduction alone, of the same tensors, by the training's own call, by TensorFlow's
MultiWorkerMirroredStrategy, and as one array by mpi4py, which is the floor.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Figure, benchmark_main, median
from benchmarks.training_task import make_data

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(__file__).with_name("horovod_ranks.py")
LIMIT_S = 300
# The case of a figure -> mode of the ranks' program, number of processes.
CASES = {"one": ("apart", 1), "apart": ("apart", 2), "two": ("train", 2)}
PEERS = {
    "Horovod, the training's call": "horovod",
    "MultiWorkerMirroredStrategy": "mirrored",
    "mpi4py, one array": "mpi",
}
EFFICIENCY_GOAL = 0.9


def run(quick: bool) -> list[Figure]:
    # Setting -> rounds, steps a round.
    settings = {"quick": (1, 50)} if quick else {"communication-bound": (4, 150), "published": (3, 8)}
    figures = []
    with tempfile.TemporaryDirectory(prefix="ensemble-horovod-scaling-") as name:
        folder = Path(name)
        make_data(folder, 64 if quick else 96)
        for setting, (rounds, steps) in settings.items():
            figures += _training(folder, setting, rounds, steps)
        figures += _reduction(folder, "quick" if quick else "communication-bound", 1 if quick else 3)
    return figures


def _training(folder: Path, setting: str, rounds: int, steps: int) -> list[Figure]:
    """Efficiency and overhead of a setting; every round runs all cases, the figures are medians over the rounds."""
    measured: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case, (mode, size) in CASES.items():
            measured[case].append(median(_launch(folder, mode, size, setting, steps)))
    one, apart, two = (median(measured[case]) for case in ("one", "apart", "two"))
    note = f"{rounds} rounds of {steps} steps"
    return [
        Figure(f"{setting}: step of one rank", 1e3 * one, "ms", note=note),
        Figure(f"{setting}: step of two trainings apart", 1e3 * apart, "ms", note=note),
        Figure(f"{setting}: step of two ranks", 1e3 * two, "ms", note=note),
        Figure(f"{setting}: parallel efficiency", one / two, "", note="one rank / two ranks"),
        Figure(
            f"{setting}: efficiency of the communication",
            apart / two,
            "",
            EFFICIENCY_GOAL if setting == "published" else None,
            "higher",
            note="two trainings apart / two ranks",
        ),
        Figure(f"{setting}: overhead of the communication", 1e3 * (two - apart), "ms a step"),
    ]


def _reduction(folder: Path, setting: str, rounds: int) -> list[Figure]:
    measured: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for _ in range(rounds):
        for peer, mode in PEERS.items():
            measured[peer].append(median(_launch(folder, mode, 2, setting, 200)))
    return [Figure(f"{setting}: reduction alone, {peer}", 1e3 * median(measured[peer]), "ms") for peer in PEERS]


def _launch(folder: Path, mode: str, size: int, setting: str, steps: int) -> list[float]:
    """Seconds of every step as rank 0 measured them."""
    (folder / "seconds.json").unlink(missing_ok=True)
    (folder / "ports.json").write_text(json.dumps(_free_ports(size)))
    command: Sequence[str | Path] = [Path(sys.executable).parent / "mpiexec", "-n", str(size), sys.executable, PROGRAM]
    quiet = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, mode, folder, setting, str(steps)],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{mode} with {size} ranks ended with exit code {done.returncode}:\n{done.stderr}")
    seconds: list[float] = json.loads((folder / "seconds.json").read_text())
    return seconds


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("localhost", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.horovod_scaling", __doc__, run))
