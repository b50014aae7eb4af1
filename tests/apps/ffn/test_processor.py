"""What is said of a processor on which a network would be slow."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from apps.ffn.model import Precision
from apps.ffn.processor import computes_bfloat16, warn_of_slow


def info(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: Some Xeon\n{flags}\nbugs\t\t: none\n")
    return path


WITH, WITHOUT = "flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile", "flags\t\t: fpu avx2 avx512_bf16"


@pytest.mark.parametrize(("flags", "expected"), [(WITH, True), (WITHOUT, False), ("Features\t: fp asimd bf16", None)])
def test_the_unit_is_known_by_its_flag(tmp_path: Path, flags: str, expected: bool | None) -> None:
    assert computes_bfloat16(info(tmp_path, flags)) is expected
    assert computes_bfloat16(tmp_path / "elsewhere") is None


def test_only_a_slow_network_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r'float32 is faster on it\. Settings \{"mode": "fast", "precision": "float32"'
    ):
        warn_of_slow("bfloat16", info(tmp_path, WITHOUT))
    fine: list[tuple[Precision, str]] = [("float32", WITHOUT), ("bfloat16", WITH), ("bfloat16", "")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision, flags in fine:
            warn_of_slow(precision, info(tmp_path, flags))
