"""Weights set by hand: a network whose answer is known beforehand, so that it needs no training."""

from __future__ import annotations

import numpy as np

from apps.ffn.model import ModelParameters, Weights, initial_weights


def bright_is_object(model: ModelParameters) -> Weights:
    """The weights of a network that says: what is brighter than the mean belongs to the object, the rest does not."""
    return with_bright_path({name: np.zeros_like(value) for name, value in initial_weights(model, 0).items()})


def with_bright_path(weights: Weights) -> Weights:
    """`weights` with a way through the network by which a voxel's own grey value decides.

    The first feature of the first two convolutions is the image, where that is over 0 (the mean); the last one makes a
    logit of it: 30 for each standard deviation, less 5.
    """
    changed = {name: value.copy() for name, value in weights.items()}
    for name in ("conv0_a", "conv0_b"):
        changed[f"{name}/weights"][1, 1, 1, 0, 0] = 1.0
    changed["conv_lom/weights"][0, 0, 0, 0, 0] = 30.0
    changed["conv_lom/biases"][0] = -5.0
    return changed
