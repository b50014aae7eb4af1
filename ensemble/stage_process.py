"""A stage in a process that ends when the one that started it does.

`python -m ensemble.stage_process PARENT_PID STAGE [what `python -m apps.STAGE` takes]`
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from apps.core.stage import load_stage, stage_main

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, dies, however it dies (on Linux).

    To the kernel a parent is a thread: where one thread of many starts processes, it has to outlive them.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: Sequence[str]) -> int:
    parent, stage, *rest = arguments
    end_with_parent(int(parent))
    return stage_main(load_stage(stage), rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
