"""Architecture, training and segmentation together: the most accurate network that one can afford to deploy.

A learning rate that suits one depth does not suit another, and a threshold can make up for a smaller network: searched
one after the other, they end elsewhere than searched together.  The objective is accuracy, less a bit for every
doubling by which segmenting VOLUME_MM3 would take more than NODE_HOURS, at the speed that the trial measured.

Bad configurations end after RUNGS[0] fields of view; a third of each rung goes on to the next, from its checkpoint.

Meant for 512 to 4,096 nodes, a trial each: 10,000 trials of 0.3 node-hours on average, at most 2.4.

    ensemble search run searches/joint.py --campaign fib25 --site SITE --workers 2048 --trials 10000
"""

from __future__ import annotations

from ConfigSpace import EqualsCondition, InCondition
from deephyper.hpo import HpProblem

from analysis import voxels_in
from apps.ffn.settings import InferenceSettings
from apps.ffn.variants import VARIANTS
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import ACCURACY, accuracy_under_budget
from searches.common import flat_deltas, flat_fov, forbid, network, trial

# Fields of view that a trial is trained on: the same work, whatever the batch.
RUNGS = (16_000, 48_000, 144_000, 432_000)
GEOMETRY = Geometry(fov=(33, 33, 33), deltas=(8, 8, 8))  # no canvas is larger than this one's, 49 voxels
THREADS = 16  # cores that a trial has on its node
TIME_LIMIT_S = 6 * 3600.0  # a rung that takes longer hangs

# What is to be segmented, voxels zyx, and what there is to spend on it.
VOLUME_MM3, VOXEL_SIZE_NM = 1.0, (40.0, 6.0, 6.0)
NODE_HOURS = 200_000
PROCESSES_PER_NODE = 1  # trials' segmentations that one node could do side by side: GPUs, or cores over THREADS


def problem(data: CampaignData) -> HpProblem:
    """The space."""
    space = HpProblem()
    # The network.
    variant = space.add_hyperparameter(list(VARIANTS), "variant")
    space.add_hyperparameter((3, 12), "depth")
    features = space.add_hyperparameter([8, 16, 24, 32], "features")
    space.add_hyperparameter([0.5, 1.0], "taper")
    space.add_hyperparameter(["none", "group"], "normalisation")
    bottleneck = space.add_hyperparameter([2, 4, 8], "bottleneck")
    coarse = space.add_hyperparameter([1, 2], "coarse_z")
    space.add_condition(EqualsCondition(bottleneck, variant, "bottleneck"))
    space.add_condition(EqualsCondition(coarse, variant, "twoscale"))
    fov = space.add_hyperparameter([17, 25, 33], "fov")
    delta = space.add_hyperparameter([4, 6, 8, 12], "delta")
    space.add_hyperparameter([1, 2, 4], "flatness")
    kernel = space.add_hyperparameter([3, 5], "kernel")
    space.add_hyperparameter([1, 3], "kernel_z")
    forbid(space, fov, delta, lambda fov, delta: delta > fov // 2 or fov + 2 * delta > GEOMETRY.canvas[1])
    forbid(space, features, kernel, lambda features, kernel: kernel == 5 and features > 16)
    # Its training.  Rates that suit adaptive optimisers are far too small for the others.
    optimizer = space.add_hyperparameter(["adam", "adamw", "rmsprop", "momentum", "sgd"], "optimizer")
    adaptive = space.add_hyperparameter((1e-4, 5e-3, "log-uniform"), "adaptive_rate")
    plain = space.add_hyperparameter((1e-3, 1e-1, "log-uniform"), "plain_rate")
    space.add_condition(InCondition(adaptive, optimizer, ["adam", "adamw", "rmsprop"]))
    space.add_condition(InCondition(plain, optimizer, ["momentum", "sgd"]))
    space.add_hyperparameter([4, 8, 16], "batch_size")
    space.add_hyperparameter(["constant", "cosine"], "schedule")
    space.add_hyperparameter([0.0, 0.005, 0.02], "warmup")  # share of all steps; over before the first rung ends
    space.add_hyperparameter([0.1, 0.7, 3.0], "clip")
    space.add_hyperparameter([0.0, 0.99, 0.999], "ema")  # 0: none
    space.add_hyperparameter(["float32", "bfloat16"], "training_precision")
    # Its segmentation.
    space.add_hyperparameter(["faithful", "fast"], "mode")
    space.add_hyperparameter((0.5, 0.94), "move")
    space.add_hyperparameter((0.5, 0.8), "segment")
    return space


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    chosen = request.configuration
    fov = flat_fov(chosen["fov"], chosen["flatness"])
    deltas = flat_deltas(chosen["delta"], chosen["flatness"])
    batch, adaptive = chosen["batch_size"], chosen["adaptive_rate"]
    steps = RUNGS[-1] // batch
    return trial(
        request,
        InferenceSettings(mode=chosen["mode"], move=chosen["move"], segment=chosen["segment"]),
        model=network(chosen, fov, deltas),
        optimizer=chosen["optimizer"],
        learning_rate=chosen["plain_rate"] if adaptive is None else adaptive,
        batch_size=batch,
        steps=(request.budget or RUNGS[-1]) // batch,
        warmup_steps=round(chosen["warmup"] * steps),
        schedule=chosen["schedule"],
        schedule_steps=steps,
        clip=chosen["clip"],
        ema=chosen["ema"] or None,
        precision=chosen["training_precision"],
        threads=THREADS,
    )


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy_under_budget(
        voxels_in(VOLUME_MM3, VOXEL_SIZE_NM), NODE_HOURS, processes_per_node=PROCESSES_PER_NODE
    ),
    objectives=ACCURACY,
    geometry=GEOMETRY,
    initial_points=256,
    rungs=RUNGS,
    time_limit_s=TIME_LIMIT_S,
)
