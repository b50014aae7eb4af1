"""Cutting a box into overlapping subvolumes: the plan that inference works off and reconciliation puts together.

A subvolume's write box is what it owns; its read box is what it sees, with an overlap into its neighbours' that lets
their objects be recognised as the same.
"""

from __future__ import annotations

import itertools
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters


class Subvolume(Parameters, frozen=True, kw_only=True):
    """The unit of inference."""

    read_box: Annotated[Box, Meta(description="what is segmented, with the overlap")]
    write_box: Annotated[Box, Meta(description="what of it goes into the merged segmentation")]

    def check(self) -> None:
        if self.write_box.empty:
            raise ParameterError(f"write_box {self.write_box}: is empty; expected a box with voxels")
        if not self.read_box.contains(self.write_box):
            raise ParameterError(f"write_box {self.write_box}: leaves its read_box {self.read_box}")


def plan_subvolumes(box: Box, shape: Triple, overlap: Triple, bounds: Box | None = None) -> tuple[Subvolume, ...]:
    """Cut `box` into subvolumes, in zyx order.

    shape: extent of a write box, zyx.  Write boxes tile `box` exactly from its first corner on, the last of an axis may
        be shorter; they cover whole chunks of a volume that begins at that corner where `shape` is a multiple of its
        chunks.
    overlap: how many voxels the read boxes of two neighbours share at least, zyx.  A read box is the write box with
        half of that on either side, and at least of extent `shape`, as far as `bounds` goes.
    bounds: what may be read: `box` itself by default, or a box around it, all of the volume for example.  The margin
        gives objects at the faces of `box` the context that those inside have.

    Raises ParameterError where `box` is empty or leaves `bounds`, or `shape` or `overlap` cannot work.
    """
    if box.empty:
        raise ParameterError(f"box {box}: is empty; expected a box with voxels")
    if min(shape) < 1:
        raise ParameterError(f"subvolume shape {shape}: expected positive extents")
    if any(not 0 <= o <= n for o, n in zip(overlap, shape, strict=True)):
        raise ParameterError(f"overlap {overlap}: expected 0 to the subvolume's shape {shape} along each axis")
    bounds = bounds or box
    if not bounds.contains(box):
        raise ParameterError(f"box {box}: leaves what may be read, {bounds}")
    spans = zip(zip(box.offset, box.end, strict=True), zip(bounds.offset, bounds.end, strict=True), strict=True)
    rows = zip(spans, shape, overlap, strict=True)
    z_axis, y_axis, x_axis = (_plan_axis(inner, outer, n, o) for (inner, outer), n, o in rows)
    plan = []
    for (rz, wz), (ry, wy), (rx, wx) in itertools.product(z_axis, y_axis, x_axis):
        read = Box.between((rz[0], ry[0], rx[0]), (rz[1], ry[1], rx[1]))
        write = Box.between((wz[0], wy[0], wx[0]), (wz[1], wy[1], wx[1]))
        plan.append(Subvolume(read_box=read, write_box=write))
    return tuple(plan)


Interval = tuple[int, int]


def _plan_axis(box: Interval, bounds: Interval, extent: int, overlap: int) -> list[tuple[Interval, Interval]]:
    """(read, write) intervals along one axis."""
    plan = []
    for first in range(*box, extent):
        last = min(first + extent, box[1])
        read_first, read_last = max(bounds[0], first - overlap // 2), min(bounds[1], last + overlap - overlap // 2)
        # A short rest at the end gets context: a flood-filling network cannot work in a sliver.
        read_first = max(bounds[0], min(read_first, read_last - extent))
        plan.append(((read_first, read_last), (first, last)))
    return plan
