r"""The thresholds of flood filling for a trained model: its weights stay, a trial only segments.

The published thresholds were set for one data set, google/ffn's manual has others, and which are best depends on the
network.  The model is the campaign's `--init`: a checkpoint folder, or the prefix of a google/ffn checkpoint.

Meant for 16 to 64 nodes, a trial each: 200 trials of minutes, 0.1 node-hours at most.

    ensemble search run searches/inference_thresholds.py --campaign tuned --init MODEL --site SITE --workers 32 \
        --trials 200
"""

from __future__ import annotations

from pathlib import Path

from ConfigSpace import EqualsCondition
from deephyper.hpo import HpProblem

from apps.core.errors import ParameterError
from apps.ffn.settings import InferenceSettings
from apps.trial.stage import TrialParameters
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import ACCURACY, accuracy
from searches.common import trial

GEOMETRY = Geometry()  # where the model's is larger, the campaign takes that
THREADS = 16  # cores that a trial has on its node
TIME_LIMIT_S = 3600.0


def problem(data: CampaignData) -> HpProblem:
    """The space.  `init` is never under `move`, without which no object could start."""
    if data.init is None:
        raise ParameterError("this search is of a trained model; name it with --init when the campaign is made")
    space = HpProblem()
    space.add_hyperparameter((0.9, 0.99), "init")
    space.add_hyperparameter((0.5, 0.9), "move", default_value=0.9)
    space.add_hyperparameter((0.3, 0.9), "segment", default_value=0.6)
    space.add_hyperparameter((0.05, 0.5), "pad", default_value=0.05)
    space.add_hyperparameter((100, 5_000, "log-uniform"), "min_size", default_value=1_000)
    space.add_hyperparameter([1, 2, 3], "boundary_distance")
    space.add_hyperparameter(["on", "off"], "disco")  # whether voxels may rise again behind the front
    policy = space.add_hyperparameter(["peaks", "peaks2d", "grid"], "seed_policy")
    grid = space.add_hyperparameter([8, 16, 24], "grid_step")
    space.add_condition(EqualsCondition(grid, policy, "grid"))
    space.add_hyperparameter(["forward", "reverse"], "seed_order")
    return space


def parameters(request: TrialRequest) -> TrialParameters:
    """One configuration as parameters of the trial stage."""
    chosen, init = request.configuration, request.data.init
    assert init is not None  # problem
    distance = chosen["boundary_distance"]
    options = {} if chosen["grid_step"] is None else {"grid_step": chosen["grid_step"]}
    inference = InferenceSettings(
        init=chosen["init"],
        move=chosen["move"],
        segment=chosen["segment"],
        pad=chosen["pad"],
        min_size=chosen["min_size"],
        boundary_distance=(distance, distance, distance),
        disco_seed_threshold=0.0 if chosen["disco"] == "on" else None,
        seed_policy=chosen["seed_policy"],
        reverse_seeds=chosen["seed_order"] == "reverse",
        **options,
    )
    # What a checkpoint folder was trained with goes before what the campaign found in its image.
    own = {"image_mean": None, "image_std": None} if Path(init).is_dir() else {}
    return trial(request, inference, init=init, steps=0, batch_size=1, threads=THREADS, **own)


search = Search(
    problem=problem,
    parameters=parameters,
    objective=accuracy,
    objectives=ACCURACY,
    geometry=GEOMETRY,
    initial_points=16,
    time_limit_s=TIME_LIMIT_S,
)
