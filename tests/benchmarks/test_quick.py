"""Every benchmark that needs no service runs in its quick form and reports what it says it reports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import load_report

ROOT = Path(__file__).resolve().parents[2]
# Name -> the beginning of a figure that it is there for.
QUICK = {
    "ffn_inference": "fast: times as fast as faithful",
    "ffn_device": "best of the sweep",
    "masked_inference": "masks save: looks of the network",
    "ffn_variants": "twoscale: one look, bfloat16",
    "ffn_training": "trainer / bare",
    "ffn_partition": "times faster",
    "montage": "error, phantom",
    "alignment": "scores: rank correlation",
    "reconciliation_scale": "times less processor time than networkx",
    "morphology": "pyramid, labels",
    "search_utilisation": "ensemble, 8 workers",
    "search_quality": "times less regret than deephyper cbo",
    "search_resume": "process: start to first new evaluation",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_benchmark_runs_in_its_quick_form(name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a goal was missed, on a machine that does other things too
    written = load_report(report)
    figures = {figure["name"]: figure["value"] for figure in written["figures"]}
    assert any(figure.startswith(QUICK[name]) and value > 0 for figure, value in figures.items())
    assert written["command"] == f"python -m benchmarks.{name} --quick"
