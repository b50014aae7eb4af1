"""The two policies of the field of view's moves, on canvases small enough to go through by hand."""

from __future__ import annotations

import numpy as np
import pytest

from apps.core.boxes import Triple
from apps.ffn.movement import (
    CENTRE,
    PAD,
    POLICIES,
    Array,
    FixedMoves,
    Ground,
    MaxPredMoves,
    Movement,
    Policy,
    face_moves,
    fixed_moves,
    logit,
    training_canvas,
)


def ground_of(policy: Policy, fov: int = 3, delta: int = 1, labels: Array | None = None) -> Ground:
    shape = training_canvas((fov,) * 3, (delta,) * 3, policy)
    if labels is None:
        labels = np.full(shape, CENTRE, np.float32)
    return Ground(labels, (fov,) * 3, (delta,) * 3, np.random.default_rng(0))


def fresh_canvas(ground: Ground) -> Array:
    canvas = np.full(ground.labels.shape, logit(PAD), np.float32)
    canvas[tuple(ground.centre)] = logit(CENTRE)
    return canvas


def all_moves(moves: Movement, canvas: Array) -> list[Triple]:
    found = []
    while (position := moves.next(canvas)) is not None:
        found.append(position)
    return found


def test_fixed_moves_are_the_26_shifts_or_those_of_the_moving_axes() -> None:
    assert len(fixed_moves((4, 4, 4))) == 26
    flat = fixed_moves((0, 3, 3))
    assert len(flat) == 8
    assert set(flat[:, 0]) == {0}


def test_the_canvas_has_one_step_to_either_side_and_two_where_the_policy_needs_them() -> None:
    assert training_canvas((33, 33, 33), (8, 8, 8), "fixed") == (49, 49, 49)
    assert training_canvas((9, 17, 17), (0, 4, 4), "max_pred_moves") == (9, 33, 33)


def test_fixed_goes_to_the_centre_then_once_to_each_shift_at_the_gate() -> None:
    ground = ground_of("fixed")
    canvas = fresh_canvas(ground)
    moves = FixedMoves(ground)
    assert moves.next(canvas) == (2, 2, 2)
    canvas[1, 2, 2] = canvas[3, 3, 3] = logit(0.9)
    canvas[2, 2, 1] = np.nextafter(logit(0.9), np.float32(0))
    canvas[0, 2, 2] = 9.0  # no shift by delta leads there
    assert sorted(all_moves(moves, canvas)) == [(1, 2, 2), (3, 3, 3)]
    assert moves.next(np.full_like(canvas, 9.0)) is None
    # All 27 voxels are wanted; three were gone to.
    assert moves.counts.tolist() == [3, 24, 0]


def test_moves_that_the_labels_do_not_want_are_made_by_fixed_and_counted() -> None:
    ground = ground_of("fixed")
    ground.labels[1] = PAD
    moves = FixedMoves(ground)
    assert len(all_moves(moves, np.full(ground.labels.shape, 9.0, np.float32))) == 27
    assert moves.counts.tolist() == [18, 0, 9]


def test_the_order_of_fixed_is_that_of_the_generator() -> None:
    full = np.full((5, 5, 5), 9.0, np.float32)
    first, again = (all_moves(FixedMoves(ground_of("fixed")), full) for _ in range(2))
    shifts = np.random.default_rng(0).permutation(fixed_moves((1, 1, 1)))
    assert first == again == [(2, 2, 2), *map(tuple, (shifts + 2).tolist())]


def test_face_moves_are_the_maxima_of_the_faces_the_strongest_first() -> None:
    canvas = np.zeros((9, 9, 9), np.float32)
    canvas[4, 4, 6] = 4.0  # face x = +2
    canvas[3, 2, 5] = 5.0  # face y = -2, off its middle
    canvas[6, 6, 6] = 3.0  # an edge of three faces; x = +2 has a stronger voxel
    canvas[2, 4, 4] = logit(0.89)
    canvas[4, 4, 7] = 9.0  # on no face
    assert face_moves(canvas, (4, 4, 4), (0, 0, 0), (2, 2, 2)) == [(-1, -2, 1), (0, 0, 2), (2, 2, 2)]
    # The same seen from a place one voxel away from the centre; an axis without a step has no faces.
    canvas[...] = 0
    canvas[5, 4, 6] = 3.0
    assert face_moves(canvas, (5, 4, 4), (1, 0, 0), (0, 2, 2)) == [(1, 0, 2)]


def test_equal_faces_come_in_descending_order_of_their_offsets() -> None:
    canvas = np.full((5, 5, 5), 3.0, np.float32)
    # The first voxel of each face in zyx order; the corner -1, -1, -1 is first on three of them.
    assert face_moves(canvas, (2, 2, 2), (0, 0, 0), (1, 1, 1)) == [
        (1, -1, -1),
        (-1, 1, -1),
        (-1, -1, 1),
        (-1, -1, -1),
    ]


def test_max_pred_moves_by_hand() -> None:
    ground = ground_of("max_pred_moves")  # canvas 7, centre 3, at most 2 from it
    canvas = fresh_canvas(ground)
    moves = MaxPredMoves(ground)
    assert moves.next(canvas) == (3, 3, 3)
    canvas[4, 3, 3], canvas[3, 2, 3] = 5.0, 6.0
    assert moves.next(canvas) == (3, 2, 3)
    # From here (4, 3, 3) is on two faces, and the centre on one; both are known.
    assert moves.next(canvas) == (4, 3, 3)
    canvas[5, 3, 3] = 7.0
    assert moves.next(canvas) == (5, 3, 3)
    canvas[6, 3, 3] = 8.0  # the field of view would leave the canvas
    assert moves.next(canvas) is None
    assert moves.next(canvas) is None
    assert moves.counts.tolist() == [4, 0, 0]


def test_max_pred_moves_looks_again_when_it_gets_there_and_leaves_what_is_outside_of_the_object() -> None:
    ground = ground_of("max_pred_moves")
    ground.labels[3, 2, 3] = PAD
    canvas = fresh_canvas(ground)
    moves = MaxPredMoves(ground)
    moves.next(canvas)
    canvas[4, 3, 3], canvas[3, 3, 4], canvas[3, 2, 3] = 5.0, 4.0, 6.0
    # The strongest face is not of the object: counted, not gone to.
    assert moves.next(canvas) == (4, 3, 3)
    canvas[3, 3, 4] = 0.0  # the network took it back before its turn
    assert moves.next(canvas) is None
    # The second time that (3, 2, 3) comes up, from (4, 3, 3), it counts again, as google/ffn does.
    assert moves.counts.tolist() == [2, 1, 2]


def test_max_pred_moves_visits_a_cell_of_the_delta_grid_once() -> None:
    ground = ground_of("max_pred_moves", fov=5, delta=2)  # canvas 13, centre 6
    canvas = fresh_canvas(ground)
    moves = MaxPredMoves(ground)
    moves.next(canvas)
    canvas[8, 5, 6] = 5.0  # offset 2, -1, 0: in the cell 1, 0, 0
    assert moves.next(canvas) == (8, 5, 6)
    canvas[8, 5, 6] = 0.0
    canvas[8, 6, 8] = 6.0  # offset 2, 0, 2: on the face x = +2 of this place, in the cell 1, 0, 1
    assert moves.next(canvas) == (8, 6, 8)
    canvas[8, 6, 8] = 0.0
    canvas[8, 5, 6] = 7.0
    assert moves.next(canvas) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_policy_goes_on_as_the_first(policy: Policy) -> None:
    rng = np.random.default_rng(3)
    ground = ground_of(policy, 5, 2)
    first = POLICIES[policy](ground)
    for moves_made in range(25):
        second = POLICIES[policy](ground_of(policy, 5, 2))
        state = first.state()
        assert state.dtype == np.int64 and state.ndim == 1
        second.restore(state)
        assert second.state().tolist() == state.tolist()
        canvas = rng.normal(4, 1, ground.labels.shape).astype(np.float32)
        assert first.next(canvas) == second.next(canvas), moves_made
        assert first.counts.tolist() == second.counts.tolist()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("state", [[], [1, 2], [-1, 0, 0, 0], [0, 0, 0, 2, 0, 0, 1], [0, 0, 0, 0, 0, 2, *range(6)]])
def test_a_state_of_another_form_is_refused(policy: Policy, state: list[int]) -> None:
    with pytest.raises(ValueError, match=f"no state of the movement policy {policy}"):
        POLICIES[policy](ground_of(policy)).restore(np.array(state, np.int64))
