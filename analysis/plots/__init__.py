"""Plots: functions from tables to matplotlib figures.  They show in a notebook, and the report embeds them."""

from analysis.plots.hyperparameters import hyperparameter_importance, parallel_coordinates
from analysis.plots.quality import measure_against_error, measure_over_sections, states_by_step
from analysis.plots.search import hypervolume_trajectory, objectives_scatter, rungs, search_trajectory
from analysis.plots.trials import learning_curves, trial_scatter
from analysis.plots.workers import costs_by_outcome, worker_utilisation

__all__ = [
    "costs_by_outcome",
    "hyperparameter_importance",
    "hypervolume_trajectory",
    "learning_curves",
    "measure_against_error",
    "measure_over_sections",
    "objectives_scatter",
    "parallel_coordinates",
    "rungs",
    "search_trajectory",
    "states_by_step",
    "trial_scatter",
    "worker_utilisation",
]
