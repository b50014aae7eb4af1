"""Joining surfaces, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.meshes.surfaces import Simplification, in_groups, joined, mesh_unit
from apps.morphology.cutting import Cut
from apps.morphology.precomputed import decode_mesh, encode_mesh


def triangle(*corners: tuple[float, float, float]) -> bytes:
    return encode_mesh(np.array(corners, np.float32), np.array([[0, 1, 2]], np.uint32))


def test_vertices_in_a_seam_become_one() -> None:
    """Units of 4 voxels of 2 nm: along x two share the plane of voxel 4, whose middle is at 9 nm."""
    left = triangle((9, 1, 1), (9, 3, 1), (7, 1, 1))
    right = triangle((9, 3, 1), (9, 1, 1), (11, 1, 1))
    mesh = joined([left, right], (4, 4, 4), (2.0, 2.0, 2.0))
    assert mesh.vertices.tolist() == [[9, 1, 1], [9, 3, 1], [7, 1, 1], [11, 1, 1]]
    assert mesh.faces.tolist() == [[0, 1, 2], [1, 0, 3]]


def test_vertices_elsewhere_stay() -> None:
    """Two surfaces of one object that touch away from a seam are two."""
    one, other = triangle((6, 1, 2), (6, 3, 2), (7, 1, 2)), triangle((6, 3, 2), (6, 1, 2), (5, 1, 2))
    mesh = joined([one, other], (4, 4, 4), (2.0, 2.0, 2.0))
    assert len(mesh.vertices) == 6
    assert mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_groups_keep_order_and_size() -> None:
    data = [b"aa", b"bbb", b"c", b"dddddd", b"e"]
    assert list(in_groups(data, 5)) == [[b"aa", b"bbb"], [b"c"], [b"dddddd"], [b"e"]]


def test_a_surface_does_not_depend_on_the_other_objects_of_its_unit() -> None:
    """Balls of one size that the unit's faces cut, among each other and alone."""
    z, y, x = np.ogrid[:40, :40, :40]
    labels = np.zeros((40, 40, 40), np.uint32)
    for number, (cz, cy, cx) in enumerate([(0, 10, 10), (20, 39, 12), (39, 12, 39), (20, 20, 20)], start=1):
        labels[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= 81] = number
    unit, whole = Box.of((0, 0, 0), labels.shape), Box.between((-40, -40, -40), (80, 80, 80))
    size, how = (8.0, 4.0, 4.0), Simplification(factor=100, max_error_nm=40)

    def cut(kept: NDArray[np.uint32], numbers: list[int]) -> Cut:
        voxels = np.array([(labels == number).sum() for number in numbers])
        return Cut(kept, np.array(numbers, np.uint64), voxels, unit, unit)

    numbers = [1, 2, 3, 4]
    together = mesh_unit(cut(labels, numbers), whole, size, how)
    assert [fragment.id for fragment in together] == numbers
    for number, fragment in zip(numbers, together, strict=True):
        (alone,) = mesh_unit(cut((labels == number).astype(np.uint32), [number]), whole, size, how)
        assert alone.data == fragment.data and fragment.data


def test_a_damaged_mesh_is_named_so() -> None:
    with pytest.raises(DataError, match="damaged"):
        decode_mesh(triangle((1, 1, 1), (2, 1, 1), (1, 2, 1))[:-5])
