"""Ids that hold in the whole of a segmentation."""

from __future__ import annotations

import numpy as np
import pytest

from apps.core.errors import DataError
from apps.core.supervoxels import MAX_LOCAL, MAX_SUBVOLUMES, split_ids, supervoxel_ids


def test_an_id_names_subvolume_and_object_and_nothing_stays_nothing() -> None:
    ids = supervoxel_ids(MAX_SUBVOLUMES - 1, np.array([[0, 1], [7, MAX_LOCAL]], np.uint32))
    assert ids.dtype == np.uint64 and ids[0, 0] == 0
    assert int(ids.max()) == 2**53 - 1  # the largest that a double keeps
    subvolume, local = split_ids(ids[ids != 0])
    assert set(subvolume.tolist()) == {MAX_SUBVOLUMES - 1}
    assert local.tolist() == [1, 7, MAX_LOCAL]


@pytest.mark.parametrize(("subvolume", "local"), [(0, MAX_LOCAL + 1), (0, -1), (MAX_SUBVOLUMES, 1), (-1, 1)])
def test_what_overflows_is_refused(subvolume: int, local: int) -> None:
    with pytest.raises(DataError, match=r"subvolume .*overflows; expected 0 to"):
        supervoxel_ids(subvolume, np.array([local], np.int64))
