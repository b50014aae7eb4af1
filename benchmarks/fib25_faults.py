"""The search that benchmarks.fib25_search runs: searches/ffn_variants.py as it is shipped, with four trials spoilt.

What is wrong with a trial is decided by its number, not by its configuration: the space and the optimiser stay those of
the shipped search.  The failures themselves are real ones:

    bad_configuration  a field of view larger than the box that is to be segmented: the trial stage refuses it
    diverged           plain gradient descent at a rate of 10, without clipping or normalisation: the loss explodes
    bug                a misspelt hyperparameter, in the function that makes the parameters: a KeyError
    hung               the image is a folder whose metadata is a pipe that nobody writes to, as of a file server that
                       has gone: opening it never returns

The optimiser is told of them as of any other, so that it takes three configurations for bad ones that need not be.

The objective is not the shipped one.  After a minute of training on real EM, VI alone is best for a network that finds
nothing (2.03 bits on this box, where those that segment it have 3 and more), and such would be promoted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec.structs import replace as changed

from apps.core.errors import FailureKind
from apps.core.parameters import Parameters
from apps.ffn.model import ModelParameters
from apps.trial.stage import TrialParameters
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.objectives import accuracy
from searches.ffn_variants import search as variants

# Number of the trial -> how it fails.
FAULTS = {
    1: FailureKind.HUNG,
    2: FailureKind.BAD_CONFIGURATION,
    4: FailureKind.DIVERGED,
    6: FailureKind.BUG,
}
TOO_LARGE = (129, 129, 129)  # voxels zyx; validation boxes have 64 and some context
# What a voxel without an object costs: twice the entropy of the truth on this box, which is all that VI counts for it.
EMPTY_BITS = 4.0
TIME_LIMIT_S = 420.0  # the dearest network of the space takes five minutes for its last rung


def filled_accuracy(result: dict[str, Any]) -> float:
    """The negative VI, in bits, less EMPTY_BITS for the share of the labelled voxels that is left empty."""
    return accuracy(result) - EMPTY_BITS * (1 - float(result["scores"]["filled_fraction"]))


def with_faults(search: Search, time_limit_s: float) -> Search:
    """`search` with the trials of FAULTS spoilt, and a limit on what one of its jobs may take."""
    return replace(search, parameters=spoilt(search.parameters), time_limit_s=time_limit_s)


def spoilt(parameters: Callable[[TrialRequest], Parameters]) -> Callable[[TrialRequest], Parameters]:
    """`parameters`, but of a trial in FAULTS such that fail as it says there."""

    def made(request: TrialRequest) -> Parameters:
        fault = fault_of(request)
        if fault is FailureKind.BUG:
            request.configuration["learning_rat"]
        good = parameters(request)
        if fault is None:
            return good
        assert isinstance(good, TrialParameters)
        return SPOIL[fault](good, request)

    return made


def fault_of(request: TrialRequest) -> FailureKind | None:
    """How the trial is to fail; its folder is named by its number."""
    return FAULTS.get(int(Path(request.output).name))


def _refused(good: TrialParameters, request: TrialRequest) -> TrialParameters:
    model = good.training.model or ModelParameters()
    return changed(good, training=changed(good.training, model=changed(model, fov=TOO_LARGE)))


def _diverging(good: TrialParameters, request: TrialRequest) -> TrialParameters:
    model = good.training.model or ModelParameters()
    wild = changed(
        good.training,
        model=changed(model, normalisation="none"),
        optimizer="sgd",
        learning_rate=10.0,
        schedule="constant",
        schedule_steps=None,
        clip=None,
        curve_every=2,  # where an exploded loss is seen
    )
    return changed(good, training=wild)


def _hanging(good: TrialParameters, request: TrialRequest) -> TrialParameters:
    image = Path(f"{request.output}-never.zarr")
    pipe = image / "zarr.json"
    image.mkdir(parents=True, exist_ok=True)
    if not pipe.exists():
        os.mkfifo(pipe)
    volume, *others = good.training.volumes
    volumes = (changed(volume, image=str(image)), *others)
    return changed(good, training=changed(good.training, volumes=volumes))


SPOIL: dict[FailureKind, Callable[[TrialParameters, TrialRequest], TrialParameters]] = {
    FailureKind.BAD_CONFIGURATION: _refused,
    FailureKind.DIVERGED: _diverging,
    FailureKind.HUNG: _hanging,
}

search = with_faults(replace(variants, objective=filled_accuracy, objectives=("filled accuracy",)), TIME_LIMIT_S)
