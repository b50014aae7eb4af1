from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.core.errors import DataError
from apps.core.volumes import open_volume, write_volume
from apps.ffn.coordinates import read_coordinates
from apps.ffn.examples import CENTRE, MOVE, PAD, ExampleSource, Slot, fixed_moves, logit
from apps.ffn.model import ModelParameters
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data


def source_of(folder: Path, model: ModelParameters = TINY, weight: float = 1.0) -> ExampleSource:
    data = tiny_data(folder)
    coordinates = read_coordinates(data.coordinates)
    return ExampleSource(open_volume(data.image), open_volume(data.labels), coordinates, model, (MEAN, STD), weight)


def slot_of(source: ExampleSource, slot: int = 0, slots: int = 2) -> Slot:
    made = Slot(source, TINY.deltas, 11, slot, slots, np.zeros(TINY.canvas, np.float32))
    made.start()
    return made


def test_fixed_moves_are_the_26_shifts_or_those_of_the_moving_axes() -> None:
    assert len(fixed_moves((4, 4, 4))) == 26
    flat = fixed_moves((0, 3, 3))
    assert len(flat) == 8
    assert set(flat[:, 0]) == {0}


def test_example_is_the_normalised_image_and_the_soft_mask_of_the_centres_object(tmp_path: Path) -> None:
    source = source_of(tmp_path, weight=0.25)
    image, labels = (open_volume(str(tmp_path / f"{name}.zarr")).read() for name in ("image", "labels"))
    example = source.cut(3, np.array([False, False, False]), (0, 1, 2))
    z, y, x = source.coordinates[3]
    view = slice(z - 6, z + 7), slice(y - 6, y + 7), slice(x - 6, x + 7)
    np.testing.assert_allclose(example.image, (image[view] - MEAN) / STD, rtol=1e-6)
    mask = labels[view] == labels[z, y, x]
    np.testing.assert_array_equal(example.labels, np.where(mask, np.float32(CENTRE), np.float32(PAD)))
    np.testing.assert_array_equal(example.weights, np.where(labels[view] > 0, np.float32(1), np.float32(0.25)))


def test_flips_and_axes_turn_image_and_labels_alike(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    plain = source.cut(0, np.zeros(3, bool), (0, 1, 2))
    turned = source.cut(0, np.array([True, False, True]), (2, 0, 1))
    for one, other in ((plain.image, turned.image), (plain.labels, turned.labels)):
        np.testing.assert_array_equal(one[::-1, :, ::-1].transpose(2, 0, 1), other)


def test_only_axes_of_equal_extent_and_resolution_are_exchanged(tmp_path: Path) -> None:
    assert len(source_of(tmp_path).axis_orders) == 6
    flat = ModelParameters(depth=1, features=1, fov=(5, 9, 9), deltas=(1, 2, 2))
    assert source_of(tmp_path, flat).axis_orders == [(0, 1, 2), (0, 2, 1)]
    data = tiny_data(tmp_path)
    write_volume(tmp_path / "thick.zarr", open_volume(data.image).read(), (40.0, 10.0, 10.0))
    thick = ExampleSource(
        open_volume(str(tmp_path / "thick.zarr")),
        open_volume(data.labels),
        read_coordinates(data.coordinates),
        TINY,
        (MEAN, STD),
        1.0,
    )
    assert thick.axis_orders == [(0, 1, 2), (0, 2, 1)]


def test_large_volumes_read_canvas_by_canvas_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = source_of(tmp_path).cut(5, np.ones(3, bool), (1, 0, 2))
    monkeypatch.setattr("apps.ffn.examples.MEMORY_VOXELS", 0)
    read = source_of(tmp_path).cut(5, np.ones(3, bool), (1, 0, 2))
    np.testing.assert_array_equal(held.image, read.image)
    np.testing.assert_array_equal(held.labels, read.labels)


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


def test_a_restored_slot_goes_on_as_the_first(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    first = slot_of(source)
    first.canvas[...] = 5.0
    for _ in range(40):
        first.next_position()
        first.canvas[...] = 5.0
    second = slot_of(source)
    second.canvas[...] = first.canvas
    second.restore(first.example, first.move)
    for _ in range(60):
        assert first.next_position() == second.next_position()
        np.testing.assert_array_equal(first.current.image, second.current.image)
        first.canvas[...] = second.canvas[...] = 5.0


def test_slots_share_no_coordinate_in_an_epoch_and_show_each_of_theirs(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    seen: list[set[int]] = []
    for number in range(2):
        slot = slot_of(source, number)
        mine = set()
        for example in range(100):
            slot.restore(example, 0)
            mine.add(int(slot._order[example]))
        seen.append(mine)
    assert [len(mine) for mine in seen] == [100, 100]
    assert not seen[0] & seen[1]


def test_bad_volumes_and_coordinates_are_named(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    image, labels = open_volume(data.image), open_volume(data.labels)
    with pytest.raises(DataError, match="1 of 1 training coordinates"):
        ExampleSource(image, labels, np.array([[2, 16, 16]], np.int32), TINY, (MEAN, STD), 1.0)
    with pytest.raises(DataError, match="uint32; expected uint8"):
        ExampleSource(labels, labels, np.array([[12, 16, 16]], np.int32), TINY, (MEAN, STD), 1.0)
    write_volume(tmp_path / "small.zarr", np.zeros((8, 8, 8), np.uint32), (10.0, 10.0, 10.0))
    with pytest.raises(DataError, match=r"has the shape \(8, 8, 8\)"):
        small = open_volume(str(tmp_path / "small.zarr"))
        ExampleSource(image, small, np.array([[12, 16, 16]], np.int32), TINY, (MEAN, STD), 1.0)


def test_bad_coordinate_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_coordinates(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match=r"text.npz: is not a readable npz"):
        read_coordinates(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "empty.npz", zyx=np.zeros((0, 3), np.int32))
    with pytest.raises(DataError, match="holds no coordinate"):
        read_coordinates(str(tmp_path / "empty.npz"))
    np.savez(tmp_path / "floats.npz", zyx=np.zeros((4, 3)))
    with pytest.raises(DataError, match="float64"):
        read_coordinates(str(tmp_path / "floats.npz"))
    np.savez(tmp_path / "other.npz", xyz=np.zeros((4, 3), np.int32))
    with pytest.raises(DataError, match="zyx"):
        read_coordinates(str(tmp_path / "other.npz"))
