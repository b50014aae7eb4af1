"""What every variant must do, whatever it is; and counts by hand of each."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.ffn.cost import flop_per_fov, flop_per_voxel_gained, parameter_count, receptive_field
from apps.ffn.model import ModelParameters, Weights, check_weights, initial_weights, weight_shapes
from apps.ffn.network import Network
from apps.ffn.variants import VARIANTS

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "anisotropic": {"fov": (5, 13, 11), "deltas": (0, 3, 2), "kernel": (1, 3, 3), "coarse": (1, 2, 2)},
    "tapered": {"taper": 2.0, "depth": 4},
    "normalised": {"normalisation": "group", "groups": 2, "taper": 0.5},
}


def model_of(variant: str, **fields: Any) -> ModelParameters:
    values: dict[str, Any] = {
        "depth": 3,
        "features": 4,
        "fov": (9, 11, 13),
        "deltas": (2, 2, 3),
        "bottleneck": 2,
    } | fields
    return ModelParameters(variant=variant, **values)


def random_weights(model: ModelParameters, seed: int = 0) -> Weights:
    """Without zeros, so that every part of the network shows."""
    rng = np.random.default_rng(seed)
    return {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in initial(model).items()}


def initial(model: ModelParameters) -> Weights:
    return initial_weights(model, 3)


def views(model: ModelParameters, batch: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    image, seed = (rng.normal(0, 1, (batch, *model.fov)).astype(np.float32) for _ in range(2))
    return image, seed


every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_option = pytest.mark.parametrize("option", OPTIONS)


@every_variant
@every_option
def test_description_and_network_agree(variant: str, option: str) -> None:
    model = model_of(variant, **OPTIONS[option])
    weights = random_weights(model)
    assert list(weights) == list(weight_shapes(model))
    network = Network(model, weights, threads=1)
    assert network.keras_model.count_params() == parameter_count(model)
    back = network.weights()
    assert list(back) == list(weights)
    assert all(np.array_equal(back[name], weights[name]) for name in weights)

    image, seed = views(model, 2)
    predict = network.predictor(2)
    logits = predict(image, seed)
    assert (logits.shape, logits.dtype) == (image.shape, np.float32)
    assert np.array_equal(logits, predict(image, seed))
    network.assign(initial(model))
    assert not np.array_equal(logits, predict(image, seed))


@every_variant
def test_output_is_an_update_of_the_seed(variant: str) -> None:
    model = model_of(variant)
    nothing = {name: np.zeros_like(value) for name, value in initial(model).items()}
    image, seed = views(model, 1)
    for precision in ("float32", "bfloat16", "float16"):
        network = Network(model, nothing, 1, precision)
        assert np.array_equal(network.predictor()(image, seed), seed)


@every_variant
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_close_and_keeps_float32_weights(variant: str, precision: Any) -> None:
    model = model_of(variant, normalisation="group", groups=2)
    weights, (image, seed) = random_weights(model), views(model, 1)
    exact = Network(model, weights, 1).predictor()(image, seed)
    network = Network(model, weights, 1, precision)
    assert {str(variable.dtype) for variable in network.keras_model.trainable_variables} == {"float32"}
    reduced = network.predictor()(image, seed)
    update = np.abs(exact - seed).max()
    assert 0 < np.abs(reduced - exact).max() < 0.05 * update


@every_variant
@every_option
def test_gradients_reach_every_weight(variant: str, option: str) -> None:
    model = model_of(variant, **OPTIONS[option])
    network = Network(model, random_weights(model), threads=1)
    tf, (image, seed) = network.tf, views(model, 1)
    with tf.GradientTape() as tape:
        logits = network.keras_model([image[..., None], seed[..., None]], training=True)
        loss = tf.reduce_mean(tf.square(logits))
    values = [variable.value for variable in network.keras_model.trainable_variables]
    gradients = tape.gradient(loss, values)
    assert len(gradients) == len(weight_shapes(model))
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in gradients)


@every_variant
@pytest.mark.parametrize(
    "fields",
    [
        {"fov": (17, 21, 19), "depth": 2},
        {"fov": (5, 25, 37), "depth": 2, "kernel": (1, 3, 5), "coarse": (1, 2, 2)},
        {"fov": (9, 9, 29), "depth": 3, "kernel": (1, 1, 3), "coarse": (1, 1, 2)},
    ],
)
def test_receptive_field_is_what_the_centre_sees(variant: str, fields: dict[str, Any]) -> None:
    """One voxel at the edge of the receptive field changes the centre; one voxel further does not."""
    model = model_of(variant, deltas=(2, 2, 2), **fields)
    weights = {name: np.abs(value) + np.float32(0.01) for name, value in initial(model).items()}  # no dead ends
    network, centre = Network(model, weights, threads=1), model.margin
    predict, base = network.predictor(), np.ones((1, *model.fov), np.float32)
    before = predict(base, base)[0][centre]
    field = receptive_field(model)
    assert all(extent <= seen for extent, seen in zip(field, model.fov, strict=True)), "the probe needs room"
    for axis in range(3):
        for side in (-1, 1):
            for further in (0, 1):
                place = list(centre)
                place[axis] += side * (field[axis] // 2 + further)
                if not 0 <= place[axis] < model.fov[axis]:
                    continue
                changed = base.copy()
                changed[0][tuple(place)] += 100
                after = predict(changed, base)[0][centre]
                assert (after != before) == (further == 0), (field, place)


@every_variant
def test_group_normalisation_sees_the_whole_field_of_view(variant: str) -> None:
    model = model_of(variant, depth=1, fov=(21, 21, 21), normalisation="group", groups=2)
    assert receptive_field(model) == (21, 21, 21)
    predict, (image, seed) = Network(model, random_weights(model), 1).predictor(), views(model, 1)
    before = predict(image, seed)[0, 10, 10, 10]
    image[0, 0, 0, 0] += 100
    assert predict(image, seed)[0, 10, 10, 10] != before


# By hand, for depth 2, 4 features, kernel 3, field of view 9 x 9 x 9, bottleneck 2; a convolution of i inputs and o
# outputs with a window of w has w i o + o parameters and 2 x 729 w i o FLOP.
FIRST = 27 * 2 * 4  # conv0_a
FULL = 27 * 4 * 4
LAST = 4  # conv_lom
BY_HAND: dict[str, tuple[int, float, Triple]] = {
    # conv0_a, conv0_b, conv1_a, conv1_b, conv_lom
    "convstack": (FIRST + 3 * FULL + LAST + 4 * 4 + 1, 1458.0 * (FIRST + 3 * FULL + LAST), (9, 9, 9)),
    # conv0_a, down 4 -> 2, kernel 2 -> 2, up 2 -> 4, conv_lom
    "bottleneck": (
        FIRST + 8 + 27 * 4 + 8 + LAST + 4 + 2 + 2 + 4 + 1,
        1458.0 * (FIRST + 8 + 27 * 4 + 8 + LAST),
        (5, 5, 5),
    ),
    # conv0_a; conv0_b, conv1_a, conv1_b as 9 and 3 taps; conv_lom
    "separable": (
        FIRST + 3 * 12 * 16 + LAST + 4 + 3 * 8 + 1,
        1458.0 * (FIRST + 3 * 12 * 16 + LAST),
        (9, 9, 9),
    ),
    # conv0_a; conv0_b, conv1_a, conv1_b as 9 and 3 taps of 4 features and 4 x 4; conv_lom
    "depthwise": (
        FIRST + 3 * (12 * 4 + 16) + LAST + 4 + 3 * 4 + 1,
        1458.0 * (FIRST + 3 * (12 * 4 + 16) + LAST),
        (9, 9, 9),
    ),
    # Fine conv0_a, conv0_b, conv_lom; on 5 x 5 x 5: coarse_down, conv1_a, conv1_b, coarse_up.  The centre (4) is
    # position 2 of 5; it sees 2 +- 2 there, -1 .. 9 through coarse_down, and 2 more on each side through module 0.
    "twoscale": (
        FIRST + FULL + 3 * FULL + 16 + LAST + 6 * 4 + 1,
        1458.0 * (FIRST + FULL + LAST) + 250.0 * (3 * FULL + 16),
        (15, 15, 15),
    ),
}


@every_variant
def test_counts_by_hand(variant: str) -> None:
    model = model_of(variant, depth=2, fov=(9, 9, 9), deltas=(0, 2, 3))
    assert (parameter_count(model), flop_per_fov(model), receptive_field(model)) == BY_HAND[variant]
    assert flop_per_voxel_gained(model) == flop_per_fov(model) / 6


def test_counts_of_the_options_by_hand() -> None:
    """convstack of depth 2 and 4 features, tapered to 8: a 1x1x1 convolution widens what is added."""
    model = model_of("convstack", depth=2, taper=2.0, kernel=(1, 3, 3))
    kernels = 9 * (2 * 4 + 4 * 4 + 4 * 8 + 8 * 8) + 4 * 8 + 8
    assert parameter_count(model) == kernels + 4 + 4 + 8 + 8 + 8 + 1
    assert flop_per_fov(model) == 2 * 9 * 11 * 13 * kernels
    assert receptive_field(model) == (1, 9, 9)
    assert "conv1_skip/weights" in weight_shapes(model)
    grouped = model_of("convstack", depth=2, normalisation="group", groups=2)
    # Before each rectification, a gamma and a beta a feature: conv0_a, conv1, conv1_a, conv_lom.
    assert parameter_count(grouped) == parameter_count(model_of("convstack", depth=2)) + 4 * 2 * 4
    assert flop_per_fov(grouped) == flop_per_fov(model_of("convstack", depth=2))


def test_widths() -> None:
    model = model_of("convstack", depth=3, features=8, taper=0.25)
    assert [model.width(module) for module in range(3)] == [8, 4, 2]
    groups = model_of("convstack", depth=3, features=12, taper=0.1, normalisation="group", groups=3)
    assert [groups.width(module) for module in range(3)] == [12, 3, 3]
    assert model_of("convstack", depth=1, taper=0.5).width(0) == 4


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"variant": "unet"}, "unet.*convstack, bottleneck, separable, depthwise, twoscale"),
        ({"kernel": (2, 3, 3)}, "odd"),
        ({"kernel": (1, 1, 1)}, "at least 3"),
        ({"kernel": (3, 3, 19)}, "larger than the field of view"),
        ({"coarse": (1, 1, 1)}, "coarse"),
        ({"coarse": (1, 3, 3)}, "coarse"),
        ({"normalisation": "group", "groups": 3}, "groups 3"),
        ({"normalisation": "batch"}, "normalisation"),
        ({"taper": 0.0}, "taper"),
        ({"bottleneck": 0}, "bottleneck"),
    ],
)
def test_impossible_options_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        ModelParameters(**fields)
    with pytest.raises(ParameterError, match=word):
        ModelParameters.from_json(fields)


def test_schema_lists_the_variants_and_old_descriptions_load() -> None:
    schema = ModelParameters.schema()["$defs"]["ModelParameters"]
    assert schema["properties"]["variant"]["enum"] == list(VARIANTS)
    old = {"variant": "convstack", "depth": 2, "features": 4, "fov": [9, 9, 9], "deltas": [2, 2, 2]}
    model = ModelParameters.from_json(old)
    assert (model.kernel, model.taper, model.normalisation) == ((3, 3, 3), 1.0, "none")


def test_weights_of_another_variant_are_refused() -> None:
    with pytest.raises(DataError, match=r"here: .*conv0_b/weights.*separable"):
        check_weights(model_of("separable"), initial(model_of("convstack")), "here")


@pytest.mark.parametrize(
    ("model", "seed", "digest"),
    [
        (ModelParameters(), 0, "7d1f76b616bbc2ea8140714c7e6ff0a4a41ed68a6b69061cae50bcb9edeb717f"),
        (ModelParameters(), 7, "f8427ab6bc0db083ead2e430e6535338d281d53189bb8090e121e93a4a94e897"),
        (
            ModelParameters(depth=12, features=32, fov=(33, 33, 33), deltas=(8, 8, 8)),
            0,
            "201a518bc78a29ac07310484dcd1dba601c0d3c75cf6c842c79ac797586f46f3",
        ),
    ],
)
def test_initial_weights_are_those_of_ever(model: ModelParameters, seed: int, digest: str) -> None:
    """SHA-256 of names and bytes: a training with the same seed starts as it did with earlier versions."""
    found = hashlib.sha256()
    for name, value in initial_weights(model, seed).items():
        found.update(name.encode() + value.tobytes())
    assert found.hexdigest() == digest


@every_variant
def test_initial_features_keep_their_scale(variant: str) -> None:
    """Neither exploding nor vanishing at the published depth: or a search would compare initialisations."""
    model = model_of(variant, depth=12, features=8, fov=(9, 9, 9))
    image, seed = views(model, 1)
    update = Network(model, initial(model), 1).predictor()(image, seed) - seed
    assert 0.01 < update.std() < 10
