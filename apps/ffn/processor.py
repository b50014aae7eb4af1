"""What this machine's processor computes fast, as far as Linux says it."""

from __future__ import annotations

import warnings
from pathlib import Path

from apps.ffn.model import Precision

CPU_INFO = Path("/proc/cpuinfo")
# Intel's matrix unit (AMX) for bfloat16, as Linux calls it.  AVX-512's bfloat16 dot products alone do not make up for
# the conversions between the layers (benchmarks/results/ffn_variants_without_amx.json).
_UNIT = "amx_bf16"


def computes_bfloat16(info: Path = CPU_INFO) -> bool | None:
    """Whether an x86 processor has a unit for products of bfloat16 matrices; None where that cannot be told."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else _UNIT in flags


def warn_of_slow(precision: Precision, info: Path = CPU_INFO) -> None:
    """Warn where a network in `precision` runs on a processor on which float32 is faster.

    It is not changed on its own: the processor would then decide what the objects are.
    """
    if precision == "bfloat16" and computes_bfloat16(info) is False:
        warnings.warn(
            "this processor has no unit for bfloat16 (AMX), in which mode fast computes by default: float32 is faster "
            'on it. Settings {"mode": "fast", "precision": "float32"} take it; objects differ slightly between the two',
            stacklevel=2,
        )
