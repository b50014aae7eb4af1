"""What reduced precision costs in accuracy and saves in time: every pair of training and inference precision, repeated.

A difference between two precisions means something only beside the differences between two seeds, so that each pair is
run with REPEATS of them.  The table then has accuracy and measured cost of all; `ensemble report` draws one against the
other.  Nothing is chosen as it goes: it is a grid.

Meant for 27 nodes, a trial each: 27 trials of at most 0.4 node-hours, once on every kind of node one may use.

    ensemble search run searches/precision.py --campaign precision --site SITE --workers 27 --trials 27
"""

from __future__ import annotations

from deephyper.hpo import HpProblem

from apps.ffn.settings import InferenceSettings
from apps.trial.stage import TrialParameters
from ensemble.preparation import Geometry
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import ACCURACY_AND_COST, accuracy_and_cost
from searches.common import network, trial

FOVS = 64_000  # fields of view that a trial is trained on
BATCH = 8
REPEATS = 3
NETWORK = {"depth": 12, "features": 32}  # the published one
GEOMETRY = Geometry(fov=(33, 33, 33), deltas=(8, 8, 8))
THREADS = 16  # cores that a trial has on its node
TIME_LIMIT_S = 4 * 3600.0  # a trial that takes longer hangs
PRECISIONS = ["float32", "bfloat16", "float16"]

problem = HpProblem()
problem.add_hyperparameter(PRECISIONS, "training_precision")
problem.add_hyperparameter(PRECISIONS, "inference_precision")
problem.add_hyperparameter(list(range(REPEATS)), "repeat")


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage; the two modes differ in precision alone."""
    chosen = request.configuration
    precision = chosen["inference_precision"]
    inference = InferenceSettings(mode="faithful" if precision == "float32" else "fast", precision=precision)
    return trial(
        request,
        inference,
        model=network(NETWORK, GEOMETRY.fov, GEOMETRY.deltas),
        optimizer="adam",
        learning_rate=1e-3,
        warmup_steps=200,
        schedule="cosine",
        precision=chosen["training_precision"],
        batch_size=BATCH,
        steps=FOVS // BATCH,
        seed=request.seed + chosen["repeat"],
        threads=THREADS,
    )


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy_and_cost,
    objectives=ACCURACY_AND_COST,
    geometry=GEOMETRY,
    optimizer="grid",
    time_limit_s=TIME_LIMIT_S,
)
