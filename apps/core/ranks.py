"""Whether this process is one of several ranks that a launcher started, told from the launcher's environment variables.

Nothing here starts MPI or Horovod: a stage's main and its progress need to know the rank before, and without, them.
How the ranks of a training speak to each other is apps/ffn/ranks.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from apps.core.errors import ParameterError

# Launcher -> its variables that hold the rank and the number of ranks, in the order in which they are looked for:
# horovodrun may run its processes through an mpirun, and any of them may run in an allocation of Slurm's.
LAUNCHERS: dict[str, tuple[str, str]] = {
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "mpirun of Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
    "mpiexec of PALS": ("PALS_RANKID", "PMI_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "srun of an older Slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
}
# Slurm sets its variables for the batch script too, which is one process; only in a step are they those of ranks.
STEP = "SLURM_STEP_ID"

PMI_SOCKET = "PMI_FD"

# A launcher that is told to end the ranks drops what it has not read of their last words.
LAST_WORDS_S = 0.5


@dataclass(frozen=True)
class Launch:
    """Which rank this process is, of how many, by which launcher ("" where none started it)."""

    rank: int = 0
    size: int = 1
    launcher: str = ""


ONE_RANK = Launch()


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the launcher's variables say; one rank where there are none.

    Raises ParameterError where they are no rank and number of ranks.
    """
    for launcher, (rank_name, size_name) in LAUNCHERS.items():
        if rank_name not in environment or size_name not in environment:
            continue
        if rank_name.startswith("SLURM") and STEP not in environment:
            continue
        rank, size = environment[rank_name], environment[size_name]
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ParameterError(
                f"{rank_name}={rank}, {size_name}={size}: expected a rank and a larger number of ranks, as {launcher} "
                "sets them; unset both to run as one rank"
            )
        return Launch(int(rank), int(size), launcher)
    return ONE_RANK


def end_all_ranks(exit_code: int, environment: Mapping[str, str] = os.environ) -> NoReturn:
    """End this process at once with `exit_code`, and with it the other ranks of its launch.

    Launchers end the other ranks when one exits with an error, with two exceptions that this is for.  MPI's own end of
    a process waits for the others, which may be waiting for this one: so nothing is run down here (buffers of standard
    output and error are written).  And Hydra, MPICH's mpiexec, lets the others wait for ever for a rank that exits
    before MPI was started: it is told by the message that MPI_Abort sends, over the socket that it gave us.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    time.sleep(LAST_WORDS_S)
    with contextlib.suppress(KeyError, ValueError, OSError):
        socket = int(environment[PMI_SOCKET])
        if stat.S_ISSOCK(os.fstat(socket).st_mode):
            os.write(socket, f"cmd=abort exitcode={exit_code}\n".encode())
    os._exit(exit_code)
