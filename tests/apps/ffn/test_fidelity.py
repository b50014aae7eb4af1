"""Flood filling with google/ffn's published network beside what google/ffn itself did with it, look by look.

The whole box is `python -m benchmarks.ffn_inference --reference`; here its first two seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.volumes import open_volume
from apps.ffn.canvas import HostCanvas, Look, Thresholds
from apps.ffn.checkpoint import load_checkpoint
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.network import Network
from apps.ffn.segmenter import Outcome, Segmenter
from apps.ffn.settings import InferenceSettings
from apps.inference.segment import normalise
from tests.apps.ffn.tiny import FIB25, GOOGLE_CHECKPOINT, needs_fib25

BOX = Box.of((40, 60, 60), (64, 128, 128))
TOO_SMALL, OBJECT = 2, 3
FLOODED = 2


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    with np.load(FIB25 / "google_ffn_run_z40-104_y60-188_x60-188.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.slow
@needs_fib25
def test_the_faithful_mode_looks_where_google_ffn_looked(reference: dict[str, Any]) -> None:
    checkpoint, settings = load_checkpoint(GOOGLE_CHECKPOINT), InferenceSettings()
    network = Network(checkpoint.model, checkpoint.weights, threads=1)
    positions: list[tuple[int, int, int]] = []

    class Recording(HostCanvas):
        def launch(self, looks: Sequence[Look]) -> None:
            positions.extend(look.position for look in looks)
            super().launch(looks)

    outcomes: list[Outcome] = []
    tried = reference["tried"][:FLOODED]  # z, y, x, outcome, steps, voxels
    image = normalise(open_volume(f"{FIB25}/training_sample2_z000-170.h5:raw").read(BOX), (128.0, 33.0))
    seeds = tried[:, :3].astype(np.int64)
    segmenter = Segmenter(BOX.shape, seeds, checkpoint.model, settings, on_outcome=outcomes.append)
    canvas = Recording(checkpoint.model, network.predictor(), Thresholds.of(settings))
    flood(iter([Subvolume(0, image, segmenter)]), canvas, lambda done: None)

    steps = int(tried[:, 4].sum())
    np.testing.assert_array_equal(positions, reference["fov_positions_zyx"][:steps])
    assert [outcome.steps for outcome in outcomes] == tried[:, 4].tolist()
    assert [OBJECT if outcome.mask is not None else TOO_SMALL for outcome in outcomes] == tried[:, 3].tolist()
    # The last bit of a logit depends on the convolution's kernels, which the processor chooses.
    assert [outcome.voxels for outcome in outcomes] == pytest.approx(tried[:, 5].tolist(), rel=1e-3)
    first = segmenter.result().labels == 1
    theirs = reference["segmentation"] == 1
    assert np.count_nonzero(first != theirs) <= 1e-3 * np.count_nonzero(theirs)
