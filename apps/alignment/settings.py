"""What alignment can be told: how to match, how to solve, how to render.  Lengths are pixels of the sections."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters


class MatchSettings(Parameters, frozen=True, kw_only=True):
    """How two sections are matched: coarse rotation and translation, then blocks from coarse to fine."""

    spacing: Annotated[int, Meta(ge=8, le=4096, description="between matched blocks, and between mesh vertices")] = 32
    block: Annotated[int, Meta(ge=16, le=256, description="side of a block, pixels of the scale it is matched at")] = 32
    search: Annotated[
        float, Meta(ge=2, le=4096, description="largest distance of a point from where the coarse transform puts it")
    ] = 24.0
    finest: Annotated[Literal[1, 2, 4, 8], Meta(description="pixels a side that the last scale averages")] = 2
    neighbours: Annotated[int, Meta(ge=1, le=8, description="earlier sections that each section is matched with")] = 2
    reach: Annotated[int, Meta(ge=1, le=64, description="how many earlier readable sections are tried for that")] = 5
    max_rotation_deg: Annotated[float, Meta(ge=0, le=180, description="largest rotation between two sections")] = 20.0
    min_correlation: Annotated[float, Meta(ge=0, lt=1, description="of a block, below it the match is dropped")] = 0.3
    max_peak_ratio: Annotated[
        float,
        Meta(gt=0, le=1, description="second to first correlation peak of a block, above it the match is dropped"),
    ] = 0.9
    min_matched: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="share of the blocks with tissue that must match, beyond chance, for a pair to count",
        ),
    ] = 0.25

    def check(self) -> None:
        if self.reach < self.neighbours:
            raise ParameterError(f"reach {self.reach}: expected at least neighbours, {self.neighbours}")
        if self.spacing % self.finest:
            raise ParameterError(f"spacing {self.spacing}: expected a multiple of finest, {self.finest}")


class SolveSettings(Parameters, frozen=True, kw_only=True):
    """The mesh of springs.  Weights are relative to that of one perfect match a vertex."""

    stiffness: Annotated[float, Meta(gt=0, description="of the springs between neighbouring vertices")] = 0.5
    anchor: Annotated[
        float,
        Meta(gt=0, description="of the springs that pull a vertex to its rigid place; keeps slow drift along z out"),
    ] = 0.003
    rigid_anchor: Annotated[
        float,
        Meta(
            ge=0,
            description="of the pull of a section's rigid motion to none; over 0 for "
            "stacks that come in register, as those of FIB-SEM do",
        ),
    ] = 0.0
    robust_scale: Annotated[float, Meta(gt=0, description="residual, pixels, at which a match has half its weight")] = (
        2.0
    )
    iterations: Annotated[int, Meta(ge=1, le=50, description="rounds of reweighting")] = 4
    window: Annotated[int, Meta(ge=2, description="sections solved at once; a longer stack streams")] = 128
    overlap: Annotated[
        int,
        Meta(
            ge=1,
            description="sections of a window that are solved again in the next one, and finished ones that hold it",
        ),
    ] = 32

    def check(self) -> None:
        if self.overlap >= self.window:
            raise ParameterError(f"overlap {self.overlap}: expected less than window, {self.window}")


class RenderSettings(Parameters, frozen=True, kw_only=True):
    """The aligned volume."""

    interpolation: Annotated[Literal["linear", "cubic"], Meta(description="between the pixels of a section")] = "linear"
    chunks: Annotated[Triple, Meta(description="of the aligned volume, zyx")] = (16, 256, 256)
    group: Annotated[Triple, Meta(description="chunks a rendering job owns, zyx")] = (1, 4, 4)
    missing: Annotated[
        Literal["black", "copy"],
        Meta(description="what stands for a section without an image: 0, or a copy of the nearest good one"),
    ] = "black"
    damaged: Annotated[
        Literal["rigid", "black", "copy"],
        Meta(description="what stands for a damaged section: its image where its neighbours put it, 0, or a copy"),
    ] = "rigid"

    def check(self) -> None:
        for name, values in (("chunks", self.chunks), ("group", self.group)):
            if min(values) < 1:
                raise ParameterError(f"{name} {values}: expected positive extents")

    @property
    def group_shape(self) -> Triple:
        """Voxels of a group, zyx."""
        (gz, gy, gx), (cz, cy, cx) = self.group, self.chunks
        return gz * cz, gy * cy, gx * cx
