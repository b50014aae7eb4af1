"""What the model variants cost at the size of the published network: arithmetic, reach, and time of one look.

The peer is `convstack`, the published architecture.  Weights are random: cost does not depend on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apps.ffn.cost import flop_per_fov, flop_per_voxel_gained, parameter_count, receptive_field
from apps.ffn.model import ModelParameters, Precision, initial_weights
from apps.ffn.network import Network
from apps.ffn.variants import VARIANTS
from benchmarks.harness import Figure, benchmark_main, median, timed

THREADS = 2
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
SIZE: dict[str, Any] = {"depth": 12, "features": 32, "fov": (33, 33, 33), "deltas": (8, 8, 8)}
SMALL: dict[str, Any] = {"depth": 2, "features": 8, "fov": (13, 13, 13), "deltas": (3, 3, 3)}
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"variant": name} for name in VARIANTS},
    "twoscale in plane": {"variant": "twoscale", "coarse": (1, 2, 2)},
    "convstack tapered to 1/2": {"taper": 0.5},
    "convstack, group normalisation": {"normalisation": "group"},
}


def run(quick: bool) -> list[Figure]:
    figures = []
    for name, options in OPTIONS.items():
        model = ModelParameters(**{**(SMALL if quick else SIZE), **options})
        reach = f"receptive field {'x'.join(map(str, receptive_field(model)))}"
        figures += [
            Figure(f"{name}: parameters", parameter_count(model) / 1e6, "million"),
            Figure(f"{name}: arithmetic of a look", flop_per_fov(model) / 1e9, "GFLOP", note=reach),
            Figure(f"{name}: arithmetic per voxel gained", flop_per_voxel_gained(model) / 1e6, "MFLOP"),
        ]
        for precision in PRECISIONS:
            seconds = look_seconds(model, precision, 3 if quick else 15)
            figures.append(Figure(f"{name}: one look, {precision}", 1e3 * seconds, "ms"))
    return figures


def look_seconds(model: ModelParameters, precision: Precision, repeats: int) -> float:
    """Median seconds of the network for one field of view."""
    predict = Network(model, initial_weights(model, 0), THREADS, precision).predictor()
    image, seed = np.random.default_rng(0).normal(size=(2, 1, *model.fov)).astype(np.float32)
    predict(image, seed)
    return median(timed(lambda: predict(image, seed), repeats))


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.ffn_variants", __doc__, run))
