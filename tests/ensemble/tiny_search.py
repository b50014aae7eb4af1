"""A search of seconds: tiny networks, a handful of small steps.  Its models are bad, and their scores real.

Small, so that the networks stay what they were: after few large steps one can run away, in training or when it is
flooded, and then the trial has diverged, rightly.  Which do depends on the last bits of the machine's arithmetic.
"""

from __future__ import annotations

from typing import Any

from deephyper.hpo import HpProblem

from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings
from apps.ffn.training_volumes import TrainingVolume
from apps.training.parameters import TrainingParameters
from apps.trial.stage import TrialParameters
from ensemble.search import Search, TrialRequest
from ensemble.search.promotion import AsynchronousHalving

RUNGS = (10, 20)

problem = HpProblem()
problem.add_hyperparameter((1e-4, 1e-3, "log-uniform"), "learning_rate")
problem.add_hyperparameter((1, 2), "depth")
problem.add_hyperparameter([4, 6], "features")


def parameters(trial: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    configuration, data = trial.configuration, trial.data
    training = TrainingParameters(
        volumes=(TrainingVolume(image=data.image, labels=data.labels, coordinates=data.coordinates),),
        output=trial.output,
        model=ModelParameters(
            depth=configuration["depth"], features=configuration["features"], fov=(13, 13, 13), deltas=(3, 3, 3)
        ),
        optimizer="sgd",
        learning_rate=configuration["learning_rate"],
        batch_size=4,
        steps=trial.budget or RUNGS[-1],
        seed=trial.seed,
        image_mean=data.image_mean,
        image_std=data.image_std,
        threads=1,
    )
    inference = InferenceSettings(min_size=50)
    return TrialParameters(training=training, validation_box=data.validation_box, inference=inference)


def objective(result: dict[str, Any]) -> float:
    """Negative variation of information."""
    return -float(result["scores"]["vi"])


search = Search(
    problem=problem,
    parameters=parameters,
    objective=objective,
    initial_points=2,
    rungs=RUNGS,
    promotion=AsynchronousHalving(factor=2),
)
