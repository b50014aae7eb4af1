"""The hand scans of FFN training as one grid: batch size, learning rate, optimiser, number of layers.

Every combination is run once, in order: what a first look at a new data set or machine wants, and the yardstick for the
searches that need fewer trials.  Every trial sees the same number of fields of view, whatever its batch.

Meant for 32 to 180 nodes, a trial each: 180 trials of at most 0.4 node-hours (docs/searches.md says how that is found).

    ensemble search run searches/scan.py --campaign fib25 --site SITE --workers 64 --trials 180
"""

from __future__ import annotations

from deephyper.hpo import HpProblem

from apps.ffn.settings import InferenceSettings
from apps.trial.stage import TrialParameters
from ensemble.preparation import Geometry
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import ACCURACY, accuracy
from searches.common import network, trial

FOVS = 64_000  # fields of view that a trial is trained on
FEATURES = 32
GEOMETRY = Geometry(fov=(33, 33, 33), deltas=(8, 8, 8))
INFERENCE = InferenceSettings()
THREADS = 16  # cores that a trial has on its node
TIME_LIMIT_S = 4 * 3600.0  # a trial that takes longer hangs

problem = HpProblem()
problem.add_hyperparameter([4, 8, 16], "batch_size")
problem.add_hyperparameter([1e-4, 3e-4, 1e-3, 3e-3], "learning_rate")
problem.add_hyperparameter(["sgd", "momentum", "adam", "adagrad", "rmsprop"], "optimizer")
problem.add_hyperparameter([6, 9, 12], "depth")


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    chosen = request.configuration
    return trial(
        request,
        INFERENCE,
        model=network({"depth": chosen["depth"], "features": FEATURES}, GEOMETRY.fov, GEOMETRY.deltas),
        optimizer=chosen["optimizer"],
        learning_rate=chosen["learning_rate"],
        batch_size=chosen["batch_size"],
        steps=FOVS // chosen["batch_size"],
        threads=THREADS,
    )


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy,
    objectives=ACCURACY,
    geometry=GEOMETRY,
    optimizer="grid",
    time_limit_s=TIME_LIMIT_S,
)
