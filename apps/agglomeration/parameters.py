"""What the stage agglomeration is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.agglomeration.contacts import CELL
from apps.agglomeration.merging import MergeRule
from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.parts import Part
from apps.inference.parameters import FloodingParameters

Action = Literal["all", "score", "merge", "relabel", "finish"]


class AgglomerationParameters(FloodingParameters, frozen=True, kw_only=True):
    """What to agglomerate, with what network, and when two objects are one."""

    segmentation: Annotated[str, Meta(description="the segmentation, an OME-Zarr volume of ids, 0 for none")]
    output: Annotated[str, Meta(description="the agglomerated segmentation, an OME-Zarr folder ending in .zarr")]
    work: Annotated[
        str | None, Meta(description="folder of scores and tables; NAME-agglomeration beside the output by default")
    ] = None
    offset: Annotated[Triple, Meta(description="first voxel of the segmentation in the image, zyx")] = (0, 0, 0)
    action: Annotated[
        Action,
        Meta(
            description="score: look again where objects touch; merge: decide; relabel: write the volume; finish: "
            "check that all of it is there, and give it its name; all: one after the other"
        ),
    ] = "all"
    part: Annotated[
        Part | None, Meta(description="this job's share of the blocks, of the actions score and relabel")
    ] = None
    block: Annotated[
        Triple,
        Meta(
            description=f"extent zyx of the blocks that the work is shared by: multiples of {CELL} and of the "
            "segmentation's chunks, or its whole extent; scores hang on it where objects touch in several places"
        ),
    ] = (256, 256, 256)
    reach: Annotated[
        float,
        Meta(
            ge=1,
            le=8,
            description="objects with voxels up to so far apart touch, in units of a voxel's shortest edge; 1: face to "
            "face",
        ),
    ] = 2.0
    radius: Annotated[Triple, Meta(description="of the window around a decision point, zyx")] = (25, 50, 50)
    min_voxels: Annotated[
        int, Meta(ge=1, description="a pair is looked at where both objects have so many voxels in the window")
    ] = 1000
    stop_below: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="where the flood from the smaller object recovers less than this of either, there is no second "
            "one; at most min_recovered; 0: always two",
        ),
    ] = 0.6
    forbidden: Annotated[
        str | None, Meta(description="CSV or Parquet with columns a and b: ids that must not become one object")
    ] = None
    cut: Annotated[
        str | None,
        Meta(description="likewise: pairs whose evidence is not used, which is how a merge is undone"),
    ] = None
    min_iou: Annotated[
        float, Meta(ge=0, le=1, description="the floods from both sides agree by more than this (intersection/union)")
    ] = MergeRule.min_iou
    min_recovered: Annotated[
        float, Meta(ge=0, le=1, description="each flood fills at least this share of each of the two objects")
    ] = MergeRule.min_recovered
    max_deleted: Annotated[
        float, Meta(ge=0, description="each flood takes away less than this share of what it fills")
    ] = MergeRule.max_deleted

    def check(self) -> None:
        if not self.output.endswith(".zarr"):
            raise ParameterError(f"output {self.output!r}: expected a name that ends in .zarr")
        if Path(self.output).absolute() == Path(self.segmentation).absolute():
            raise ParameterError(f"output {self.output!r}: is the segmentation itself; give another name")
        if min(self.radius) < 1:
            raise ParameterError(f"radius {self.radius}: expected positive extents")
        if min(self.block) < 1:
            raise ParameterError(f"block {self.block}: expected positive extents")
        if min(self.offset) < 0:
            raise ParameterError(f"offset {self.offset}: expected a place in the image, which begins at 0, 0, 0")
        if self.stop_below > self.min_recovered:
            raise ParameterError(
                f"stop_below {self.stop_below}: is over min_recovered {self.min_recovered}, so that pairs that the "
                "rule accepts would not be looked at"
            )
        if self.part is not None and self.action not in ("score", "relabel"):
            raise ParameterError(f"part: is of the actions score and relabel; {self.action} is the work of one job")

    @property
    def work_folder(self) -> Path:
        """Where scores and tables are."""
        output = Path(self.output)
        return Path(self.work) if self.work else output.with_name(f"{output.stem}-agglomeration")

    @property
    def rule(self) -> MergeRule:
        """When two objects that touch are one."""
        return MergeRule(self.min_iou, self.min_recovered, self.max_deleted)

    @property
    def scoring(self) -> dict[str, object]:
        """The parameters that scores depend on, besides volumes and network."""
        names = ("offset", "block", "reach", "radius", "min_voxels", "stop_below", "settings")
        chosen = self.to_dict()
        return {name: chosen[name] for name in (*names, "canvas", "batch", "image_mean", "image_std")}
