"""The learning rate, and how it should grow with the number of ranks: none, linear, or by the square root.

Dong et al. (arXiv 1905.06236) found linear scaling with a warm-up best up to 16 nodes and the square root beyond, on
one machine with one data set.  Here every trial has a number of ranks of its own, and is as many nodes wide as they
need.  All see the same number of fields of view: more ranks take fewer, larger steps, which is what the rule is about.

Meant for 64 to 512 nodes with RANKS_PER_NODE ranks each: 200 trials of at most 1.4 rank-hours.  Needs Horovod.

    ensemble search run searches/learning_rate.py --campaign fib25 --site SITE --workers 64 --trials 200
"""

from __future__ import annotations

from typing import Any

from ConfigSpace import GreaterThanCondition
from deephyper.hpo import HpProblem

from apps.ffn.settings import InferenceSettings
from apps.trial.stage import TrialParameters
from ensemble.preparation import Geometry
from ensemble.search.definition import JobSize, Search, TrialRequest
from ensemble.search.objectives import ACCURACY, accuracy
from searches.common import network, trial

FOVS = 256_000  # fields of view that a trial is trained on, all ranks together
BATCH = 4  # on each rank
RANKS_PER_NODE = 4  # at most; one a GPU, or a few a CPU
NETWORK = {"depth": 12, "features": 32}  # the published one
GEOMETRY = Geometry(fov=(33, 33, 33), deltas=(8, 8, 8))
INFERENCE = InferenceSettings()
THREADS = 8  # cores of each rank
TIME_LIMIT_S = 4 * 3600.0

problem = HpProblem()
problem.add_hyperparameter((3e-5, 3e-3, "log-uniform"), "learning_rate")  # of one rank
problem.add_hyperparameter([0.0, 0.02, 0.05, 0.1, 0.2], "warmup")  # share of the steps
problem.add_hyperparameter(["constant", "cosine"], "schedule")
problem.add_hyperparameter(["adam", "rmsprop"], "optimizer")
ranks = problem.add_hyperparameter([1, 2, 4, 8, 16, 32, 64], "ranks")
scaling = problem.add_hyperparameter(["none", "linear", "sqrt"], "scaling")
problem.add_condition(GreaterThanCondition(scaling, ranks, 1))  # for one rank all rules are one


def size(configuration: dict[str, Any]) -> JobSize:
    """Nodes and ranks of a trial."""
    a_node = min(configuration["ranks"], RANKS_PER_NODE)
    return JobSize(num_nodes=configuration["ranks"] // a_node, ranks_per_node=a_node)


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    chosen = request.configuration
    steps = FOVS // (BATCH * chosen["ranks"])
    return trial(
        request,
        INFERENCE,
        model=network(NETWORK, GEOMETRY.fov, GEOMETRY.deltas),
        optimizer=chosen["optimizer"],
        learning_rate=chosen["learning_rate"],
        scaling=chosen["scaling"] or "none",
        warmup_steps=round(chosen["warmup"] * steps),
        schedule=chosen["schedule"],
        batch_size=BATCH,
        steps=steps,
        threads=THREADS,
    )


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy,
    objectives=ACCURACY,
    geometry=GEOMETRY,
    initial_points=32,
    size=size,
    time_limit_s=TIME_LIMIT_S,
)
