"""The architecture: variant, depth, features, field of view, deltas and kernels, accuracy against cost.

The published network takes 45.8 GFLOP a field of view, which is what limits the volumes it can be deployed over.  Which
networks give up the least accuracy for each factor of cost is the Pareto front that this search looks for.
Nothing in the space is dearer than the published network.  Options of one variant are active with that variant alone;
pairs that cannot be, or are too dear, are forbidden.

Bad networks end after RUNGS[0] steps; a third of each rung goes on to the next, from its checkpoint.

Meant for 64 to 512 nodes, a trial each: 1,000 trials of 0.2 node-hours on average, at most 0.8.

    ensemble search run searches/architecture.py --campaign fib25 --site SITE --workers 256 --trials 1000
"""

from __future__ import annotations

from ConfigSpace import EqualsCondition
from deephyper.hpo import HpProblem

from apps.ffn.settings import InferenceSettings
from apps.ffn.variants import VARIANTS
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import ACCURACY_AND_COST, accuracy_and_cost
from searches.common import flat_deltas, flat_fov, forbid, network, trial

RUNGS = (2_000, 6_000, 18_000)  # training steps, each of BATCH fields of view
BATCH = 8
GEOMETRY = Geometry(fov=(33, 33, 33), deltas=(8, 8, 8))  # no canvas is larger than this one's, 49 voxels
INFERENCE = InferenceSettings()
THREADS = 16  # cores that a trial has on its node
TIME_LIMIT_S = 4 * 3600.0  # a rung that takes longer hangs


def problem(data: CampaignData) -> HpProblem:
    """The space."""
    space = HpProblem()
    variant = space.add_hyperparameter(list(VARIANTS), "variant")
    space.add_hyperparameter((3, 12), "depth")
    features = space.add_hyperparameter([8, 16, 24, 32], "features")
    space.add_hyperparameter([0.5, 1.0], "taper")  # features of the last module over the first
    space.add_hyperparameter(["none", "group"], "normalisation")
    bottleneck = space.add_hyperparameter([2, 4, 8], "bottleneck")
    coarse = space.add_hyperparameter([1, 2], "coarse_z")
    space.add_condition(EqualsCondition(bottleneck, variant, "bottleneck"))
    space.add_condition(EqualsCondition(coarse, variant, "twoscale"))
    # Extents in the plane, and how much flatter the field of view is along z: sections are often thicker than pixels.
    fov = space.add_hyperparameter([17, 25, 33], "fov")
    delta = space.add_hyperparameter([4, 6, 8, 12], "delta")
    space.add_hyperparameter([1, 2, 4], "flatness")
    kernel = space.add_hyperparameter([3, 5], "kernel")
    space.add_hyperparameter([1, 3], "kernel_z")
    # A step stays within half of the field of view, and a canvas within that of the coordinates.
    forbid(space, fov, delta, lambda fov, delta: delta > fov // 2 or fov + 2 * delta > GEOMETRY.canvas[1])
    forbid(space, features, kernel, lambda features, kernel: kernel == 5 and features > 16)
    space.add_hyperparameter((3e-4, 3e-3, "log-uniform"), "learning_rate")  # what suits it depends on all of these
    return space


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    chosen = request.configuration
    fov = flat_fov(chosen["fov"], chosen["flatness"])
    deltas = flat_deltas(chosen["delta"], chosen["flatness"])
    return trial(
        request,
        INFERENCE,
        model=network(chosen, fov, deltas),
        optimizer="adam",
        learning_rate=chosen["learning_rate"],
        batch_size=BATCH,
        steps=request.budget or RUNGS[-1],
        warmup_steps=RUNGS[0] // 4,
        schedule="cosine",
        schedule_steps=RUNGS[-1],
        threads=THREADS,
    )


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy_and_cost,
    objectives=ACCURACY_AND_COST,
    geometry=GEOMETRY,
    initial_points=64,
    rungs=RUNGS,
    time_limit_s=TIME_LIMIT_S,
)
