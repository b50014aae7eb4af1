"""Whether a network can be applied to an image, cut as it is: its voxel size, and how far subvolumes overlap.

Source of the overlap: a flood-filling network labels a voxel well where its field of view fits around it (M.
Januszewski et al., Nature Methods 15, 2018); published runs of large subvolumes overlap by the field of view but one
voxel (33 x 33 x 17 and 32 x 32 x 16).
"""

from __future__ import annotations

from collections.abc import Iterable

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import VoxelSize, known_voxel_size, same_voxel_size


def needed_overlap(fov: Triple) -> Triple:
    """Overlap zyx from which on every voxel of a write box has half a field of view around it in the read box."""
    z, y, x = (2 * (extent // 2) for extent in fov)
    return z, y, x


def check_overlap(grid: SubvolumeGrid, fov: Triple) -> None:
    """Raise ParameterError where subvolumes overlap by less than the field of view (zyx) needs."""
    rows = zip("zyx", grid.counts, grid.overlap, needed_overlap(fov), strict=True)
    for axis, count, overlap, needed in rows:
        if count > 1 and overlap < needed:
            raise ParameterError(
                f"overlap {grid.overlap}: is {overlap} along {axis}; the model's field of view {fov} (zyx) needs "
                f"{needed} at least, so that it fits around every voxel that a subvolume writes"
            )


def check_voxel_size(
    image: str,
    voxel_size_nm: VoxelSize | None,
    model: str,
    trained_nm: VoxelSize | None,
    anyway: str = "any_voxel_size: true",
) -> None:
    """Raise DataError where an image's voxels (zyx, nm) differ by over 1 % from those that a model was trained at.

    A size that is not known speaks against nothing.  `image` and `model` are named in the message, and `anyway` is what
    lets it pass.
    """
    if same_voxel_size(voxel_size_nm, trained_nm):
        return
    assert voxel_size_nm is not None and trained_nm is not None, "what is not known speaks against nothing"
    raise DataError(
        f"{image}: has voxels of {_nm(voxel_size_nm)} nm, and model {model} was trained at {_nm(trained_nm)} nm (zyx); "
        f"resample the image, or segment it all the same with {anyway}"
    )


def common_voxel_size(sizes: Iterable[VoxelSize | None]) -> VoxelSize | None:
    """The voxel size (zyx, nm) that all volumes have; None where one is not known, or they differ by over 1 %."""
    known = [known_voxel_size(size) for size in sizes]
    first = known[0] if known else None
    if first is None or not all(size is not None and same_voxel_size(first, size) for size in known):
        return None
    return first


def _nm(size: VoxelSize) -> str:
    return " x ".join(f"{value:g}" for value in size)
