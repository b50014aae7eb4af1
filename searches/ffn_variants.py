"""A search over the architectures of apps.ffn.variants: what is cheapest for the accuracy it gives.

Meant for tens of trials of about a minute on one core each, and to be copied and scaled up:

    ensemble search run searches/ffn_variants.py --campaign variants --site laptop --workers 2 --trials 40
    ensemble select variants --metric vi --max-cost 10

An option of one variant alone is active only where that variant is chosen.  Every trial trains the same number of
fields of view; what they cost is measured, and for `ensemble select` to weigh.
"""

from __future__ import annotations

from typing import Any

from ConfigSpace import EqualsCondition
from deephyper.hpo import HpProblem

from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings
from apps.ffn.training_volumes import TrainingVolume
from apps.ffn.variants import VARIANTS
from apps.training.parameters import TrainingParameters
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry
from ensemble.search import Search

STEPS = 1000
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


def model_of(configuration: dict[str, Any]) -> ModelParameters:
    """The network of a configuration; an inactive option keeps its default."""
    options: dict[str, Any] = {}
    if configuration["variant"] == "bottleneck":
        options["bottleneck"] = configuration["bottleneck"]
    if configuration["variant"] == "twoscale":
        options["coarse"] = (configuration["coarse_z"], 2, 2)
    return ModelParameters(
        variant=configuration["variant"],
        depth=configuration["depth"],
        features=configuration["features"],
        taper=configuration["taper"],
        kernel=(configuration["kernel_z"], 3, 3),
        normalisation=configuration["normalisation"],
        fov=GEOMETRY.fov,
        deltas=GEOMETRY.deltas,
        **options,
    )


def parameters(configuration: dict[str, Any], data: CampaignData, output: str, seed: int) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    training = TrainingParameters(
        volumes=(TrainingVolume(image=data.image, labels=data.labels, coordinates=data.coordinates),),
        output=output,
        model=model_of(configuration),
        optimizer="rmsprop",
        learning_rate=configuration["learning_rate"],
        batch_size=BATCH,
        steps=STEPS,
        schedule="cosine",
        seed=seed,
        image_mean=data.image_mean,
        image_std=data.image_std,
        threads=1,
    )
    return TrialParameters(training=training, validation_box=data.validation_box, inference=INFERENCE)


def objective(result: dict[str, Any]) -> float:
    """What DeepHyper maximises: the negative variation of information on the validation box, in bits."""
    return -float(result["scores"]["vi"])


search = Search(problem=problem, parameters=parameters, objective=objective, geometry=GEOMETRY, initial_points=8)
