"""What every stage that makes something of each object of a segmentation is asked for."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.core.parts import Part, Phase
from apps.morphology.assembly import Action
from apps.morphology.cutting import Segmentation, open_segmentation

PHASES = (Phase("forge", shared=True), Phase("collect", shared=True), Phase("finish"))


class ObjectsParameters(Parameters, frozen=True, kw_only=True):
    """Which objects of which segmentation, where the output goes, and which share of the work is to be done."""

    segmentation: Annotated[str, Meta(min_length=1, description="OME-Zarr volume of object ids, complete")]
    output: Annotated[str, Meta(min_length=1, description="folder to make, neuroglancer precomputed")]
    objects: Annotated[
        tuple[Annotated[int, Meta(ge=1)], ...] | None,
        Meta(description="ids of the objects, of any size; all by default"),
    ] = None
    shape: Annotated[Triple, Meta(description="voxels that are worked on at a time, zyx")] = (448, 448, 448)
    action: Annotated[
        Action, Meta(description="all, or a phase: forge (by units), collect (by objects), finish (alone)")
    ] = "all"
    part: Annotated[Part | None, Meta(description="this job's share of forge or collect, of several jobs")] = None

    def check(self) -> None:
        if min(self.shape) < 2:
            raise ParameterError(f"shape {self.shape}: expected at least 2 voxels along each axis")
        if self.part is not None and self.action in ("all", "finish"):
            raise ParameterError(f"action {self.action}: is the work of one job; a part goes with forge or collect")

    def open_segmentation(self) -> Segmentation:
        """The segmentation, cut into units.

        Raises DataError where it is missing, no OME-Zarr (whose voxel size is known), or not of integers.
        """
        return open_segmentation(self.segmentation, self.shape, self.objects)

    def identity(self, segmentation: Segmentation) -> dict[str, Any]:
        """What the output depends on: the segmentation, how it is cut, and the stage's own settings."""
        settings = {name: value for name, value in self.to_dict().items() if name not in _NO_SETTINGS}
        return {**segmentation.identity(), **settings}


# What they say is in the identity of the segmentation, or the output does not depend on it.
_NO_SETTINGS = ObjectsParameters.__struct_fields__
