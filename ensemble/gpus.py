"""The GPUs of this machine, and which of them a virtual node has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each, where NVIDIA's driver is loaded


def machine_gpus(driver: Path = DRIVER) -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them: those that it names, or else all that there are.

    Empty where there are none, or where the variable hides them.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        # As CUDA does it: what comes after a number that is none is hidden.
        return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))
    try:
        return [str(number) for number in range(len(list(driver.iterdir())))]
    except OSError:
        return []


def share_of_node(gpus: Sequence[str], node: int, nodes: int) -> list[str]:
    """The GPUs of one of `nodes` virtual nodes: dealt out in turn; where there are fewer than nodes, some share one."""
    if not gpus:
        return []
    return list(gpus[node::nodes]) or [gpus[node % len(gpus)]]
