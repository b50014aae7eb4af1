"""Every canvas against the one in NumPy: one contract, several places for the map."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.core.errors import DivergedError, ParameterError
from apps.ffn.canvas import Canvas, HostCanvas, Look, Thresholds
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.network import Network
from apps.ffn.segmenter import Segmentation, Segmenter
from apps.ffn.settings import InferenceSettings
from apps.ffn.tensorflow_canvas import TensorFlowCanvas

MODEL = ModelParameters(depth=1, features=2, fov=(5, 7, 9), deltas=(1, 2, 3))
SHAPES = [(16, 30, 40), (9, 24, 30), (16, 30, 40), (14, 15, 26)]


@pytest.fixture(scope="module")
def network() -> Network:
    """Blurs the image, and lets the object grow where that is bright."""
    weights = {name: np.zeros_like(value) for name, value in initial_weights(MODEL, 0).items()}
    weights["conv0_a/weights"][:, :, :, 0, 0] = 1 / 27
    weights["conv0_b/weights"][1, 1, 1, 0, 0] = 1.0
    weights["conv_lom/weights"][0, 0, 0, 0, 0] = 25.0
    weights["conv_lom/biases"][0] = -5.0
    return Network(MODEL, weights, threads=1)


def image(number: int) -> np.ndarray:
    from scipy import ndimage

    noise = np.random.default_rng(number).normal(size=SHAPES[number])
    return (5 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)


def settings(fovs: int, **fields: object) -> InferenceSettings:
    return InferenceSettings(mode="fast", precision="float32", fovs_per_object=fovs, min_size=15, **fields)  # type: ignore[arg-type]


def subvolume(number: int, chosen: InferenceSettings) -> Subvolume:
    shape = SHAPES[number]
    points = np.random.default_rng(100 + number).integers(0, shape, (80, 3))
    return Subvolume(number, image(number), Segmenter(shape, points, MODEL, chosen, probability=True))


def host(network: Network, chosen: InferenceSettings) -> Canvas:
    return HostCanvas(MODEL, network.predictor(), Thresholds.of(chosen))


def device(network: Network, chosen: InferenceSettings, slots: int = 1, batch: int = 8) -> Canvas:
    return TensorFlowCanvas(network, Thresholds.of(chosen), slots, max(map(math.prod, SHAPES)), batch)


def run(canvas: Canvas, numbers: list[int], chosen: InferenceSettings) -> dict[int, Segmentation]:
    found: dict[int, Segmentation] = {}
    flood(
        (subvolume(number, chosen) for number in numbers),
        canvas,
        lambda done: found.update({done.number: done.segmenter.result()}),
    )
    return found


def assert_same(a: Segmentation, b: Segmentation) -> None:
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.probability is not None
    assert b.probability is not None
    # Logits differ in the last bit between batch sizes; a quantised probability may then fall on the other side.
    assert np.abs(a.probability.astype(int) - b.probability).max() <= 1
    assert (a.objects, a.tried) == (b.objects, b.tried)


@pytest.mark.parametrize("fovs", [1, 3])
@pytest.mark.parametrize("disco", [0.0, 0.3, None])
def test_the_device_finds_what_the_host_finds(network: Network, fovs: int, disco: float | None) -> None:
    chosen = settings(fovs, disco_seed_threshold=disco)
    expected = run(host(network, chosen), [0], chosen)[0]
    assert len(expected.objects) > 1
    assert expected.counters.steps > 10
    assert_same(run(device(network, chosen), [0], chosen)[0], expected)


def test_a_subvolume_comes_out_the_same_whatever_shares_its_batches(network: Network) -> None:
    chosen = settings(2)
    together = run(device(network, chosen, slots=3), [0, 1, 2, 3], chosen)
    for number in range(4):
        alone = run(device(network, chosen), [number], chosen)[number]
        np.testing.assert_array_equal(together[number].probability, alone.probability)
        assert_same(together[number], alone)
    with_host = run(host(network, chosen), [0, 1, 2, 3], chosen)
    for number in range(4):
        assert_same(together[number], with_host[number])


@pytest.mark.parametrize("slots", [1, 3, 4, 7])
def test_two_batches_in_flight_change_nothing(network: Network, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: one half of the slots is worked on while the host decides on the other; none is left out."""
    chosen = settings(2)
    canvas = device(network, chosen, slots=slots)
    canvas.pipelined = True
    used: set[int] = set()
    load = canvas.load

    def loading(slot: int, voxels: np.ndarray) -> None:
        used.add(slot)
        load(slot, voxels)

    monkeypatch.setattr(canvas, "load", loading)
    found = run(canvas, [0, 1, 2, 3], chosen)
    assert len(used) == min(slots, 4)
    expected = run(device(network, chosen, slots=1), [0, 1, 2, 3], chosen)
    for number in range(4):
        assert_same(found[number], expected[number])


def test_the_time_is_shared_out(network: Network) -> None:
    chosen = settings(2)
    canvas = device(network, chosen, slots=2)
    counters = [found.counters for found in run(canvas, [0, 1], chosen).values()]
    assert sum(count.model_seconds for count in counters) == pytest.approx(canvas.model_seconds, rel=0.2)
    assert all(count.other_seconds > 0 for count in counters)


def test_nan_on_the_device_is_an_error() -> None:
    weights = initial_weights(MODEL, 0)
    weights["conv_lom/biases"][0] = np.nan
    chosen = settings(1)
    with pytest.raises(DivergedError, match="NaN"):
        run(device(Network(MODEL, weights, threads=1), chosen), [0], chosen)


def test_more_subvolumes_than_the_device_holds_are_refused(network: Network) -> None:
    with pytest.raises(ParameterError, match="smaller batch"):
        TensorFlowCanvas(network, Thresholds.of(settings(1)), 10**5, 10**8, 8)


def test_what_a_look_takes_away_is_counted_alike(network: Network) -> None:
    """In the dark the start itself goes from `init` to under even odds; where it is bright nothing does."""
    chosen = settings(1)
    voxels = np.full(SHAPES[0], -1, np.float32)
    voxels[:, :, 20:] = 2
    for canvas in (host(network, chosen), device(network, chosen)):
        deleted = []
        for place in ((8, 15, 8), (8, 15, 28)):
            canvas.load(0, voxels)
            canvas.begin(0, place)
            canvas.launch([Look(0, place, place)])
            (view,) = canvas.collect()
            deleted.append((view.valid, view.deleted))
        assert deleted == [(True, 1), (True, 0)]
