"""Analysis of result tables: load, select, plot, report.  For notebooks and for the `ensemble` command.

    import analysis
    trials = analysis.load_results("campaigns/fib25/results.parquet")
    best = analysis.select(trials, metric="m:vi", cost="m:node_hours_per_gigavoxel", cost_bound=2.0)
    analysis.plots.trial_scatter(trials, selected=best)

Every column is documented in `analysis.COLUMNS` (`analysis.describe("m:vi")`).  Importing this package costs nothing:
pandas and matplotlib are imported with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import analysis.pictures as pictures
    import analysis.plots as plots
    from analysis.columns import COLUMNS, Column, describe
    from analysis.errors import AnalysisError
    from analysis.report import Picture, ReportContent, write_report
    from analysis.results import load_curves, load_results
    from analysis.selection import finished, pareto_front, select
    from analysis.tables import AccuracyTable

__all__ = [
    "COLUMNS",
    "AccuracyTable",
    "AnalysisError",
    "Column",
    "Picture",
    "ReportContent",
    "describe",
    "finished",
    "load_curves",
    "load_results",
    "pareto_front",
    "pictures",
    "plots",
    "select",
    "write_report",
]

_HOME_OF = {
    "COLUMNS": "analysis.columns",
    "Column": "analysis.columns",
    "describe": "analysis.columns",
    "AnalysisError": "analysis.errors",
    "AccuracyTable": "analysis.tables",
    "Picture": "analysis.report",
    "ReportContent": "analysis.report",
    "write_report": "analysis.report",
    "load_curves": "analysis.results",
    "load_results": "analysis.results",
    "finished": "analysis.selection",
    "pareto_front": "analysis.selection",
    "select": "analysis.selection",
}


def __getattr__(name: str) -> Any:
    if name in ("pictures", "plots"):
        return importlib.import_module(f"analysis.{name}")
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
