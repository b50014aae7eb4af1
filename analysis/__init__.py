"""Analysis of result tables: load, select, plot, report.  For notebooks and for the `ensemble` command.

    import analysis
    trials = analysis.load_results("campaigns/fib25/results.parquet")
    best = analysis.select(trials, metric="m:vi", cost="m:node_hours_per_gigavoxel", cost_bound=2.0)
    analysis.plots.trial_scatter(trials, selected=best)
    pick = analysis.select_under_budget(trials, analysis.voxels_in(1.0, (40, 6, 6)), node_hours=2e6)

Every column is documented in `analysis.COLUMNS` (`analysis.describe("m:vi")`).  Importing this package costs nothing:
pandas and matplotlib are imported with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import analysis.pictures as pictures
    import analysis.plots as plots
    from analysis.budget import BudgetPick, select_under_budget, voxels_in
    from analysis.chain_page import ChainPage, Figure, write_chain_page
    from analysis.columns import COLUMNS, Column, describe, label
    from analysis.connectome_page import write_connectome_page
    from analysis.errors import AnalysisError
    from analysis.importance import Importance, hyperparameter_importance
    from analysis.objectives import Goal, goals_of, hypervolume_over_time, objective_front
    from analysis.quality import (
        check_quality_table,
        hold_reasons,
        load_quality_table,
        rank_correlations,
        worst_sections,
    )
    from analysis.quality_page import QualityPage, QualityPicture, StepLine, write_quality_page
    from analysis.report import Picture, ReportContent, write_report
    from analysis.results import load_curves, load_results
    from analysis.selection import ACCURACY, COST, finished, pareto_front, select
    from analysis.tables import AccuracyTable
    from analysis.timing import cost_by_outcome, utilisation

__all__ = [
    "ACCURACY",
    "COLUMNS",
    "COST",
    "AccuracyTable",
    "AnalysisError",
    "BudgetPick",
    "ChainPage",
    "Column",
    "Figure",
    "Goal",
    "Importance",
    "Picture",
    "QualityPage",
    "QualityPicture",
    "ReportContent",
    "StepLine",
    "check_quality_table",
    "cost_by_outcome",
    "describe",
    "finished",
    "goals_of",
    "hold_reasons",
    "hyperparameter_importance",
    "hypervolume_over_time",
    "label",
    "load_curves",
    "load_quality_table",
    "load_results",
    "objective_front",
    "pareto_front",
    "pictures",
    "plots",
    "rank_correlations",
    "select",
    "select_under_budget",
    "utilisation",
    "voxels_in",
    "worst_sections",
    "write_chain_page",
    "write_connectome_page",
    "write_quality_page",
    "write_report",
]

_HOME_OF = {
    "BudgetPick": "analysis.budget",
    "select_under_budget": "analysis.budget",
    "voxels_in": "analysis.budget",
    "ChainPage": "analysis.chain_page",
    "Figure": "analysis.chain_page",
    "write_chain_page": "analysis.chain_page",
    "write_connectome_page": "analysis.connectome_page",
    "Goal": "analysis.objectives",
    "goals_of": "analysis.objectives",
    "hypervolume_over_time": "analysis.objectives",
    "objective_front": "analysis.objectives",
    "Importance": "analysis.importance",
    "hyperparameter_importance": "analysis.importance",
    "cost_by_outcome": "analysis.timing",
    "utilisation": "analysis.timing",
    "ACCURACY": "analysis.selection",
    "COST": "analysis.selection",
    "COLUMNS": "analysis.columns",
    "label": "analysis.columns",
    "Column": "analysis.columns",
    "describe": "analysis.columns",
    "AnalysisError": "analysis.errors",
    "AccuracyTable": "analysis.tables",
    "check_quality_table": "analysis.quality",
    "hold_reasons": "analysis.quality",
    "load_quality_table": "analysis.quality",
    "rank_correlations": "analysis.quality",
    "worst_sections": "analysis.quality",
    "QualityPage": "analysis.quality_page",
    "QualityPicture": "analysis.quality_page",
    "StepLine": "analysis.quality_page",
    "write_quality_page": "analysis.quality_page",
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
