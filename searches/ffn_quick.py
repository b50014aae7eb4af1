"""A small search over FFN variants: learning rate, optimiser, depth, features.

Meant for 8 to 50 trials of about a minute on one core each.  Copy it, change the space, the budget or the objective:

    ensemble search run searches/ffn_quick.py --campaign demo --site laptop --workers 2 --trials 8

With a checkpoint (`--init`), whether a trial starts from it is searched too; such a trial has the checkpoint's
architecture, so that depth and features are active only in trials that start from random weights.
"""

from __future__ import annotations

from ConfigSpace import EqualsCondition
from deephyper.hpo import HpProblem

from apps.ffn.checkpoint import load_checkpoint
from apps.ffn.cost import flop_per_fov
from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import ACCURACY, accuracy
from searches.common import network, trial

# The budget of a trial: training steps, each of BATCH fields of view, of a network of the size of REFERENCE.  Smaller
# networks get more steps, so that trials take about as long; not in proportion, as they use a core less well.
STEPS = 2100
SMALLER = 0.4
BATCH = 8
GEOMETRY = Geometry(fov=(13, 13, 13), deltas=(3, 3, 3))
REFERENCE = ModelParameters(depth=4, features=16, fov=GEOMETRY.fov, deltas=GEOMETRY.deltas)
INFERENCE = InferenceSettings(min_size=200)
RANDOM = "random"


def problem(data: CampaignData) -> HpProblem:
    """The space; `init` is in it where the campaign has a checkpoint to start from."""
    space = HpProblem()
    space.add_hyperparameter((1e-3, 4e-3, "log-uniform"), "learning_rate")
    space.add_hyperparameter(["rmsprop", "adam", "momentum"], "optimizer")
    depth = space.add_hyperparameter((3, 4), "depth")
    features = space.add_hyperparameter([8, 12, 16], "features")
    if data.init is not None:
        init = space.add_hyperparameter([RANDOM, data.init], "init")
        space.add_condition(EqualsCondition(depth, init, RANDOM))
        space.add_condition(EqualsCondition(features, init, RANDOM))
    return space


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    configuration = request.configuration
    init = configuration.get("init", RANDOM)
    model = network(configuration, GEOMETRY.fov, GEOMETRY.deltas) if init == RANDOM else None
    return trial(
        request,
        INFERENCE,
        model=model,
        init=None if init == RANDOM else init,
        optimizer=configuration["optimizer"],
        learning_rate=configuration["learning_rate"],
        batch_size=BATCH,
        steps=steps_for(model or load_checkpoint(init).model),
        schedule="cosine",
    )


def steps_for(model: ModelParameters) -> int:
    """Training steps of a network: more than STEPS where it is smaller than the reference, fewer where it is larger."""
    share = flop_per_fov(REFERENCE) / flop_per_fov(model)
    return max(1, round(STEPS * (share**SMALLER if share > 1 else share)))


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy,
    objectives=ACCURACY,
    geometry=GEOMETRY,
    initial_points=4,
)
