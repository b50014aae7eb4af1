"""The masks' network: variant, channels, depth, resolution and learning rate; how well it masks, at what cost.

Every trial is one action `train` of the stage masking on the campaign's data: an image and, as its labels, classes (0
neuropil, 1 vessel, 2 soma, 3 out of tissue, 255 not annotated).  No training coordinates are made.  Accuracy is the
mean Dice of vessels and cell bodies in the validation box; economy the negative decimal logarithm of the operations
that masking one pixel takes, which is the same on every machine.

Meant for 4 to 32 nodes, a trial each: 100 trials of at most 0.2 node-hours.  Without --data it generates a phantom.

    ensemble search run searches/masking.py --campaign masks --site SITE --workers 8 --trials 100 \\
        --data image.zarr --labels masks.zarr
"""

from __future__ import annotations

import math
from typing import Any

from deephyper.hpo import HpProblem

from apps.masking.network import NetworkParameters
from apps.masking.settings import TrainSettings
from apps.masking.stage import MaskingParameters
from ensemble.search.definition import Search, TrialRequest

MEGAPIXELS = 200  # that a trial is trained on
PATCH = 256
THREADS = 8  # cores that a trial has on its node
TIME_LIMIT_S = 2 * 3600.0

problem = HpProblem()
problem.add_hyperparameter(["unet", "residual", "separable"], "variant")
problem.add_hyperparameter([8, 16, 24, 32, 48, 64], "channels")
problem.add_hyperparameter([2, 3, 4], "poolings")
problem.add_hyperparameter([1, 2, 4, 8], "downsample")
problem.add_hyperparameter((1e-3, 3e-2, "log-uniform"), "learning_rate")
problem.add_hyperparameter([4, 8, 16], "batch_size")


def parameters(request: TrialRequest) -> MaskingParameters:
    """One configuration as parameters of the masking stage."""
    chosen, data = request.configuration, request.data
    steps = round(MEGAPIXELS * 1e6 / PATCH**2 / chosen["batch_size"])
    network = NetworkParameters(**{name: chosen[name] for name in ("variant", "channels", "poolings", "downsample")})
    return MaskingParameters(
        image=data.image,
        labels=data.labels,
        output=request.output,
        action="train",
        training=TrainSettings(
            box=data.training_box,
            validation_box=data.validation_box,
            network=network,
            patch=PATCH,
            batch_size=chosen["batch_size"],
            steps=steps,
            learning_rate=chosen["learning_rate"],
            seed=request.seed,
        ),
        threads=THREADS,
    )


def dice_and_economy(result: dict[str, Any]) -> tuple[float, float]:
    """(mean Dice of vessels and cell bodies, negative decimal logarithm of the operations a pixel).

    A class that is neither there nor found does not count.  Raises ValueError where that is both of them.
    """
    scores = [result["validation"][name] for name in ("vessel", "soma") if result["validation"][name] is not None]
    if not scores:
        raise ValueError("the validation box holds neither vessels nor cell bodies; annotate some there")
    return sum(scores) / len(scores), -math.log10(result["flop_per_pixel"])


search = Search(
    problem=problem,
    parameters=parameters,
    objective=dice_and_economy,
    objectives=("dice", "economy"),
    stage="masking",
    geometry=None,
    initial_points=16,
    time_limit_s=TIME_LIMIT_S,
)
