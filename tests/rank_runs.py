"""Real ranks for tests: a program under mpiexec or horovodrun, in a process group of its own, with a time limit."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]
# The last is horovodrun without its question, before it starts any rank, whether Horovod was built with Gloo: it loads
# all of TensorFlow to learn that, in five seconds of a processor, and ranks that find no Gloo end with an error anyway.
Launcher = Literal["mpiexec", "horovodrun", "horovodrun unasked"]
UNASKED = """
from horovod.runner import launch
launch.gloo_built = lambda **options: True
launch.run_commandline()
"""

needs_horovod = [
    pytest.mark.horovod,
    pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed: make horovod"),
]


@dataclass(frozen=True)
class Ended:
    """How a launch ended: its exit code and what its ranks wrote."""

    code: int
    out: str
    error: str


def start(
    size: int,
    arguments: Sequence[str | Path],
    launcher: Launcher = "mpiexec",
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` as `size` ranks of one thread each, with the repository on their path."""
    # mpiexec is the mpich package's, which Horovod was built against.
    commands: dict[Launcher, list[str | Path]] = {
        "mpiexec": [BIN / "mpiexec", "-n", str(size)],
        "horovodrun": [BIN / "horovodrun", "-np", str(size), "--gloo"],
        "horovodrun unasked": [sys.executable, "-c", UNASKED, "-np", str(size), "--gloo"],
    }
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*commands[launcher], sys.executable, *arguments],
        env={**os.environ, **quiet, **(environment or {})},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    size: int,
    arguments: Sequence[str | Path],
    launcher: Launcher = "mpiexec",
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 120.0,
) -> Ended:
    """Run to the end; a launch that hangs is killed at `limit_s` and fails the test."""
    process = start(size, arguments, launcher, folder, environment)
    try:
        out, error = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        kill(process)
        out, error = process.communicate()
        pytest.fail(f"{launcher} did not end within {limit_s:.0f} s\n{out}{error}")
    return Ended(process.returncode, out, error)


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 the launcher and every rank: all at once, as a node that loses its power."""
    import psutil

    victims = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
