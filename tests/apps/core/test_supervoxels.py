"""Ids that hold in the whole of a segmentation."""

from __future__ import annotations

import numpy as np

from apps.core.supervoxels import MAX_LOCAL, MAX_SUBVOLUMES, split_ids, supervoxel_ids


def test_an_id_names_subvolume_and_object() -> None:
    subvolumes, local = np.array([0, 3, MAX_SUBVOLUMES - 1]), np.array([1, 7, MAX_LOCAL], np.uint32)
    ids = supervoxel_ids(subvolumes, local)
    assert ids.dtype == np.uint64 and ids[0] == 1
    assert int(ids.max()) == 2**53 - 1  # the largest that a double keeps
    found = split_ids(ids)
    assert [part.tolist() for part in found] == [subvolumes.tolist(), local.tolist()]
