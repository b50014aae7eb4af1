"""A small search over the architectures of apps.ffn.variants, with promotion: how accurate are they, at what cost.

Meant for tens of trials on a few cores, of about a minute on one core each; most end after a ninth of that.  To be
copied and scaled up (searches/architecture.py is it at full size):

    ensemble search run searches/ffn_variants.py --campaign variants --site laptop --workers 2 --trials 40
    ensemble select variants --metric vi --max-cost 10

An option of one variant alone is active only where that variant is chosen.  All trials of a rung have trained on the
same number of fields of view; what they cost is measured, and for `ensemble select` to weigh.
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
from ensemble.search.objectives import ACCURACY, accuracy
from searches.common import network, trial

# Training steps, each of BATCH fields of view: all trials do the first number, a third of them goes on to the next.
RUNGS = (200, 600, 1800)
BATCH = 8
GEOMETRY = Geometry(fov=(13, 13, 13), deltas=(3, 3, 3))
INFERENCE = InferenceSettings(min_size=200)


def problem(data: CampaignData) -> HpProblem:
    """The space."""
    space = HpProblem()
    variant = space.add_hyperparameter(list(VARIANTS), "variant")
    space.add_hyperparameter((2, 6), "depth")
    space.add_hyperparameter([8, 12, 16, 24], "features")
    space.add_hyperparameter([0.5, 1.0, 2.0], "taper")
    space.add_hyperparameter([1, 3], "kernel_z")  # 1: what is flat in z, for thick sections
    space.add_hyperparameter(["none", "group"], "normalisation")
    bottleneck = space.add_hyperparameter([2, 4], "bottleneck")
    coarse = space.add_hyperparameter([1, 2], "coarse_z")
    space.add_condition(EqualsCondition(bottleneck, variant, "bottleneck"))
    space.add_condition(EqualsCondition(coarse, variant, "twoscale"))
    space.add_hyperparameter((1e-3, 4e-3, "log-uniform"), "learning_rate")
    return space


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    return trial(
        request,
        INFERENCE,
        model=network(request.configuration, GEOMETRY.fov, GEOMETRY.deltas),
        optimizer="rmsprop",
        learning_rate=request.configuration["learning_rate"],
        batch_size=BATCH,
        steps=request.budget or RUNGS[-1],
        schedule="cosine",
        schedule_steps=RUNGS[-1],
    )


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy,
    objectives=ACCURACY,
    geometry=GEOMETRY,
    initial_points=8,
    rungs=RUNGS,
)
