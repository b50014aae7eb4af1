from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.volumes import open_volume, write_volume
from apps.ffn.coordinates import TrainingCoordinates
from apps.ffn.examples import Augmentation, Axis, ExampleSource, Patch, Slot, axis_orders
from apps.ffn.model import ModelParameters
from apps.ffn.movement import CENTRE, MOVE, PAD, POLICIES, Policy, logit
from apps.ffn.training_volumes import OpenTrainingVolume, TrainingVolume, open_training_volumes
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data

PLAIN = np.zeros(3, bool), (0, 1, 2)


def open_tiny(folder: Path, **more: object) -> OpenTrainingVolume:
    data = tiny_data(folder)
    given = {"image": data.image, "labels": data.labels, "coordinates": data.coordinates, **more}
    return open_training_volumes([TrainingVolume.from_json(given)])[0]


def source_of(
    folder: Path,
    model: ModelParameters = TINY,
    weight: float = 1.0,
    augmentation: Augmentation | None = None,
    policy: Policy = "fixed",
    **more: object,
) -> ExampleSource:
    return ExampleSource([open_tiny(folder, **more)], model, (MEAN, STD), weight, augmentation, policy)


def slot_of(source: ExampleSource, slot: int = 0, slots: int = 2, policy: Policy = "fixed") -> Slot:
    made = Slot(source, TINY.deltas, policy, 11, slot, slots, np.zeros(source.canvas, np.float32))
    made.start()
    return made


def with_coordinates(volume: OpenTrainingVolume, zyx: list[list[int]], box: Box | None = None) -> OpenTrainingVolume:
    return dataclasses.replace(volume, coordinates=TrainingCoordinates(np.array(zyx, np.int32), box))


def test_example_is_the_normalised_image_and_the_soft_mask_of_the_centres_object(tmp_path: Path) -> None:
    source = source_of(tmp_path, weight=0.25)
    image, labels = (open_volume(str(tmp_path / f"{name}.zarr")).read() for name in ("image", "labels"))
    example = source.cut(3, *PLAIN)
    z, y, x = source.coordinates[3]
    view = slice(z - 6, z + 7), slice(y - 6, y + 7), slice(x - 6, x + 7)
    np.testing.assert_allclose(example.image, (image[view] - MEAN) / STD, rtol=1e-6)
    mask = labels[view] == labels[z, y, x]
    np.testing.assert_array_equal(example.labels, np.where(mask, np.float32(CENTRE), np.float32(PAD)))
    np.testing.assert_array_equal(example.weights, np.where(labels[view] > 0, np.float32(1), np.float32(0.25)))


def test_masked_voxels_have_no_weight(tmp_path: Path) -> None:
    mask = np.zeros((24, 32, 32), np.uint8)
    mask[:, 16:, :9] = 7
    write_volume(tmp_path / "mask.zarr", mask, (10.0, 10.0, 10.0))
    plain, masked = source_of(tmp_path, weight=0.5), source_of(tmp_path, weight=0.5, mask=str(tmp_path / "mask.zarr"))
    turn = np.array([False, True, False]), (2, 0, 1)
    excluded = 0
    for index in range(20):
        z, y, x = plain.coordinates[index]
        where = mask[z - 6 : z + 7, y - 6 : y + 7, x - 6 : x + 7][:, ::-1].transpose(2, 0, 1) > 0
        one, other = plain.cut(index, *turn), masked.cut(index, *turn)
        np.testing.assert_array_equal(other.weights, np.where(where, np.float32(0), one.weights))
        np.testing.assert_array_equal(other.labels, one.labels)
        excluded += int(where.sum())
    assert excluded > 0


def test_flips_and_axes_turn_image_and_labels_alike(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    plain = source.cut(0, *PLAIN)
    turned = source.cut(0, np.array([True, False, True]), (2, 0, 1))
    for one, other in ((plain.image, turned.image), (plain.labels, turned.labels)):
        np.testing.assert_array_equal(one[::-1, :, ::-1].transpose(2, 0, 1), other)


def test_only_axes_of_equal_extent_and_resolution_are_exchanged(tmp_path: Path) -> None:
    every: tuple[Axis, ...] = ("z", "y", "x")
    same, last_two = [(0, 1, 2)], [(0, 1, 2), (0, 2, 1)]
    assert len(axis_orders((9, 9, 9), None, every)) == 6
    assert len(axis_orders((9, 9, 9), (8.0, 8.0, 8.0), every)) == 6
    assert axis_orders((9, 9, 9), (40.0, 8.0, 8.0), every) == last_two
    assert axis_orders((5, 9, 9), (8.0, 8.0, 8.0), every) == last_two
    assert axis_orders((9, 9, 5), (40.0, 8.0, 8.0), every) == same
    assert axis_orders((9, 9, 9), None, ("y", "x")) == last_two
    assert axis_orders((9, 9, 9), None, ("z", "x")) == [(0, 1, 2), (2, 1, 0)]
    assert axis_orders((9, 9, 9), None, ("y",)) == axis_orders((9, 9, 9), None, ()) == same
    # The source asks for its canvas and each volume's voxels.
    assert source_of(tmp_path, voxel_size_nm=(40, 10, 10)).axis_orders == [last_two]
    flat = ModelParameters(depth=1, features=1, fov=(5, 9, 9), deltas=(1, 2, 2))
    assert source_of(tmp_path, flat).axis_orders == [last_two]
    assert len(source_of(tmp_path).axis_orders[0]) == 6


def test_augmentation_turns_only_what_it_may(tmp_path: Path) -> None:
    def examples(augmentation: Augmentation | None) -> set[bytes]:
        source = source_of(tmp_path, augmentation=augmentation)
        return {source.draw(0, np.random.default_rng(seed)).image.tobytes() for seed in range(300)}

    assert len(examples(None)) == 6 * 8
    assert len(examples(Augmentation(permutable_axes=()))) == 8
    assert len(examples(Augmentation(reflectable_axes=("x",)))) == 6 * 2
    assert len(examples(Augmentation(permutable_axes=("y", "x"), reflectable_axes=("y", "x")))) == 2 * 4
    still = source_of(tmp_path).cut(0, *PLAIN).image.tobytes()
    assert examples(Augmentation(permutable_axes=(), reflectable_axes=())) == {still}
    with pytest.raises(ParameterError, match="reflectable_axes"):
        Augmentation.from_json({"reflectable_axes": ["w"]})


def test_large_volumes_read_canvas_by_canvas_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = np.ones(3, bool), (1, 0, 2)
    mask = tiny_data(tmp_path).labels
    held = source_of(tmp_path, mask=mask).cut(5, *turn)
    monkeypatch.setattr("apps.ffn.examples.MEMORY_VOXELS", 0)
    read = source_of(tmp_path, mask=mask).cut(5, *turn)
    for name in ("image", "labels", "weights"):
        np.testing.assert_array_equal(getattr(held, name), getattr(read, name))


def test_several_volumes_are_one_list_of_coordinates_each_with_its_own_image(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first = with_coordinates(open_tiny(folders[0]), [[8, 8, 8], [9, 9, 9]])
    image = open_volume(tiny_data(folders[1]).image).read()
    write_volume(tmp_path / "negative.zarr", 255 - image, (40.0, 10.0, 10.0))
    given = {"image": str(tmp_path / "negative.zarr"), "image_mean": 50.0, "image_std": 5.0}
    second = with_coordinates(open_tiny(folders[1], **given), [[9, 9, 9]])
    source = ExampleSource([first, second], TINY, (MEAN, STD), 1.0)
    assert source.coordinates.tolist() == [[8, 8, 8], [9, 9, 9], [9, 9, 9]] and source.volume_of.tolist() == [0, 0, 1]
    assert [len(orders) for orders in source.axis_orders] == [6, 2]
    one, other = source.cut(1, *PLAIN), source.cut(2, *PLAIN)
    np.testing.assert_allclose(other.image * 5 + 50, 255 - (one.image * STD + MEAN), atol=1e-3)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_the_stream_of_one_rank_stays_what_it_was(tmp_path: Path) -> None:
    """Positions, examples and augmentation of two slots over 150 steps, as before there were ranks and policies."""
    source = source_of(tmp_path, weight=0.25)
    digest = hashlib.sha256()
    for number in range(2):
        slot, rng = slot_of(source, number), np.random.default_rng(5)
        for _ in range(150):
            digest.update(repr((slot.next_position(), slot.example)).encode())
            for array in (slot.current.image, slot.current.labels, slot.current.weights):
                digest.update(np.ascontiguousarray(array).tobytes())
            slot.canvas[...] = rng.normal(3, 2, slot.canvas.shape).astype(np.float32)
    assert digest.hexdigest()[:16] == "22df2692632e6449"


def test_field_of_view_goes_only_where_the_map_reaches_the_gate(tmp_path: Path) -> None:
    slot = slot_of(source_of(tmp_path))
    assert slot.next_position() == (6, 6, 6)
    # The network says yes at one shift alone: the centre's example has that one move, then the next example begins.
    slot.canvas[8, 6, 4] = logit(MOVE)
    assert slot.next_position() == (8, 6, 4)
    assert slot.example == 0
    assert slot.next_position() == (6, 6, 6)
    assert slot.example == 1
    assert len(slot.finished) == 1
    assert slot.finished[0].logits[8, 6, 4] == logit(MOVE)
    assert slot.canvas[6, 6, 6] == logit(CENTRE)
    assert np.count_nonzero(slot.canvas != logit(PAD)) == 1


def test_all_27_positions_are_visited_where_the_map_is_full(tmp_path: Path) -> None:
    slot = slot_of(source_of(tmp_path))
    slot.canvas[...] = 5.0
    visited = {slot.next_position() for _ in range(27)}
    assert len(visited) == 27
    assert slot.example == 0


def test_a_patch_counts_the_moves_against_the_labels(tmp_path: Path) -> None:
    slot = slot_of(source_of(tmp_path))
    labels = slot.current.labels[4:9:2, 4:9:2, 4:9:2] >= MOVE
    slot.canvas[...] = -5.0
    slot.canvas[4:9, 4:9, 4:7] = 5.0
    while slot.example == 0:
        slot.next_position()
    (patch,) = slot.finished
    made = np.zeros((3, 3, 3), bool)
    made[:, :, :2] = True
    assert patch.correct_moves == (labels & made).sum()
    assert patch.missed_moves == (labels & ~made).sum()
    assert patch.spurious_moves == (~labels & made).sum()
    assert patch.correct_moves + patch.missed_moves + patch.spurious_moves > 0
    assert Patch(patch.labels, patch.logits, patch.weights).correct_moves == 0


def test_max_pred_moves_has_a_larger_canvas_and_is_measured_on_the_inner_one(tmp_path: Path) -> None:
    source = source_of_middle(tmp_path)
    assert source.canvas == (17, 17, 17)
    slot = slot_of(source, 0, 1, "max_pred_moves")
    assert slot.next_position() == (8, 8, 8)
    slot.canvas[2:15, 2:15, 2:15] = np.arange(13**3).reshape(13, 13, 13) % 7 - 9.0
    expected, labels = slot.canvas[2:15, 2:15, 2:15].copy(), slot.current.labels[2:15, 2:15, 2:15]
    weights = slot.current.weights[2:15, 2:15, 2:15]
    slot.next_position()
    (patch,) = slot.finished
    np.testing.assert_array_equal(patch.logits, expected)
    np.testing.assert_array_equal(patch.labels, labels)
    np.testing.assert_array_equal(patch.weights, weights)
    assert (patch.correct_moves, patch.missed_moves, patch.spurious_moves) == (1, 0, 0)


def source_of_middle(folder: Path) -> ExampleSource:
    """Centres with 8 voxels around them, for the canvas of `max_pred_moves`."""
    volume = open_tiny(folder)
    middle = [[z, y, x] for z in range(8, 16) for y in (8, 9, 22) for x in (8, 10, 23)]
    return ExampleSource([with_coordinates(volume, middle)], TINY, (MEAN, STD), 1.0, None, "max_pred_moves")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_slot_goes_on_as_the_first(tmp_path: Path, policy: Policy) -> None:
    source = source_of(tmp_path) if policy == "fixed" else source_of_middle(tmp_path)
    rng = np.random.default_rng(2)
    first = slot_of(source, policy=policy)
    for _ in range(300):
        first.next_position()
        first.canvas[...] = rng.normal(3, 1, source.canvas)
    first.finished.clear()
    assert first.example > 0
    second = slot_of(source, policy=policy)
    second.canvas[...] = first.canvas
    second.restore(first.state())
    for _ in range(60):
        assert first.next_position() == second.next_position()
        np.testing.assert_array_equal(first.current.image, second.current.image)
        np.testing.assert_array_equal(first.state(), second.state())
        first.canvas[...] = second.canvas[...] = rng.normal(3, 1, source.canvas)
    moves = [(p.correct_moves, p.missed_moves, p.spurious_moves) for p in first.finished]
    assert moves == [(p.correct_moves, p.missed_moves, p.spurious_moves) for p in second.finished]


def test_a_state_of_another_form_is_refused(tmp_path: Path) -> None:
    slot = slot_of(source_of(tmp_path))
    bad: list[NDArray[Any]] = [np.zeros(0, np.int64), np.zeros((1, 5), np.int64), np.zeros(5), np.full(5, -1)]
    for state in bad:
        with pytest.raises(ValueError, match="no state of a stream"):
            slot.restore(state)
    with pytest.raises(ValueError, match="no state of the movement policy fixed"):
        slot.restore(np.array([0, 28, 0, 0, 0]))


@pytest.mark.parametrize(("ranks", "batch"), [(1, 4), (2, 2), (3, 7)])
def test_one_epoch_over_the_ranks_shows_every_coordinate_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, batch: int
) -> None:
    source, slots = source_of(tmp_path), ranks * batch
    shown: list[int] = []
    draw = source.draw

    def watched(index: int, rng: np.random.Generator) -> object:
        shown.append(index)
        return draw(index, rng)

    monkeypatch.setattr(source, "draw", watched)
    of_rank: list[set[int]] = []
    for rank in range(ranks):
        of_rank.append(set())
        for place in range(batch):
            slot = slot_of(source, rank * batch + place, slots)
            for _ in range(200 // slots - 1):
                while not slot.finished:
                    slot.next_position()
                    slot.canvas[...] = -5.0
                slot.finished.clear()
            of_rank[-1].update(shown[-(200 // slots) :])
    # Each slot shows as many examples; what 200 coordinates leave over comes at the end of the longer epochs.
    assert len(shown) == len(set(shown)) == 200 // slots * slots
    assert sum(map(len, of_rank)) == len(set.union(*of_rank))


def test_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    orders = []
    for example in (0, 100):
        slot = slot_of(source)
        slot.restore(np.array([example, 0, 0, 0, 0]))
        orders.append(slot._order.tolist())
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_fewer_coordinates_than_slots_are_shared(tmp_path: Path) -> None:
    source = ExampleSource([with_coordinates(open_tiny(tmp_path), [[8, 8, 8]] * 3)], TINY, (MEAN, STD), 1.0)
    assert sorted(slot_of(source, 3, 4)._order.tolist()) == [0, 1, 2]


def test_canvases_that_leave_the_volume_or_the_box_are_named(tmp_path: Path) -> None:
    volume = open_tiny(tmp_path)
    with pytest.raises(DataError, match=r"1 of 2 training coordinates .* border of .*image.zarr \(24, 32, 32\)"):
        ExampleSource([with_coordinates(volume, [[2, 16, 16], [12, 16, 16]])], TINY, (MEAN, STD), 1.0)
    box = Box.of((2, 2, 2), (20, 20, 20))
    inside = with_coordinates(volume, [[8, 8, 8], [15, 15, 15]], box)
    ExampleSource([inside], TINY, (MEAN, STD), 1.0)
    for zyx in ([7, 8, 8], [8, 16, 8]):
        with pytest.raises(DataError, match=r"1 of 2 .* border of the box 2:22,2:22,2:22 they were drawn from"):
            ExampleSource([with_coordinates(volume, [[8, 8, 8], zyx], box)], TINY, (MEAN, STD), 1.0)
    # A larger canvas reads beyond what the coordinates were drawn for.
    with pytest.raises(DataError, match=r"canvas of \(17, 17, 17\) leaves it"):
        ExampleSource([inside], TINY, (MEAN, STD), 1.0, None, "max_pred_moves")
