"""What montage is told: the table, what to trust, and how to draw."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.core.volumes import VoxelSize

# What the answer does not depend on.
_ONLY_HOW = ("tiles", "output", "sections", "workers", "worker_kind", "cache_mib", "feabas_python")


class MontageParameters(Parameters, frozen=True, kw_only=True):
    """Which tiles to put together, and how.  Lengths are in pixels of the tiles."""

    tiles: Annotated[
        str, Meta(min_length=1, description="tile table, CSV or JSON: path, section, x, y (first pixel, pixels)")
    ]
    output: Annotated[str, Meta(min_length=1, description="folder that gets sections/NNNNN.zarr and NNNNN.json")]
    sections: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...] | None,
        Meta(description="sections of the table to do, the work of one job; null does all of them"),
    ] = None
    voxel_size_nm: Annotated[VoxelSize, Meta(description="section thickness and pixel size in nanometres, zyx")] = (
        40.0,
        8.0,
        8.0,
    )
    search: Annotated[
        int,
        Meta(ge=1, le=2000, description="how far the offset of two tiles can be from the stage's, along each axis"),
    ] = 48
    min_overlap: Annotated[
        int, Meta(ge=9, le=10000, description="overlaps that are narrower than this are not looked at")
    ] = 12
    min_confidence: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="correlation of an overlap from which its offset is trusted")
    ] = 0.2
    min_significance: Annotated[
        float,
        Meta(ge=0.0, description="correlation over its spread for unrelated images, from which an offset is trusted"),
    ] = 5.0
    max_residual: Annotated[
        float, Meta(gt=0.0, le=100.0, description="offsets that miss what all others say by more are rejected")
    ] = 3.0
    illumination_sections: Annotated[
        int,
        Meta(
            ge=0,
            description="consecutive section numbers whose tiles tell the uneven illumination together: "
            "0-9, 10-19, ... for 10; 0 for no correction",
        ),
    ] = 1
    illumination_degree: Annotated[
        int, Meta(ge=1, le=8, description="degree of the polynomial that describes the illumination of a tile")
    ] = 2
    grey_range: Annotated[
        tuple[float, float] | None,
        Meta(description="values of 16-bit tiles that become 0 and 255; null takes them from the tiles of the group"),
    ] = None
    equalise: Annotated[bool, Meta(description="whether tiles get their neighbours' brightness and contrast")] = True
    blend: Annotated[
        int, Meta(ge=0, le=10000, description="pixels from a tile's border over which it comes in where tiles overlap")
    ] = 24
    chunk: Annotated[int, Meta(ge=16, le=8192, description="extent of a chunk of the image along y and x")] = 512
    workers: Annotated[int, Meta(ge=1, le=256, description="how many tiles, pairs or chunks are worked on at once")] = 1
    worker_kind: Annotated[
        Literal["threads", "processes"], Meta(description="what they are; the result is the same")
    ] = "threads"
    cache_mib: Annotated[int, Meta(ge=0, description="decoded tiles kept in memory, MiB, by all workers together")] = (
        256
    )
    backend: Annotated[
        Literal["own", "feabas"], Meta(description="what measures the overlaps; feabas has to be installed")
    ] = "own"
    feabas_python: Annotated[
        str | None, Meta(description="Python of an environment with feabas; null is the one that runs this")
    ] = None

    def check(self) -> None:
        if not min(self.voxel_size_nm) > 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")
        if self.grey_range is not None and not self.grey_range[0] < self.grey_range[1]:
            raise ParameterError(f"grey_range {self.grey_range}: expected the smaller value first")
        if self.sections is not None and not self.sections:
            raise ParameterError("sections []: names none; expected section numbers, or null for all")

    def what_matters(self) -> dict[str, Any]:
        """The parameters that the result depends on."""
        return {name: value for name, value in self.to_dict().items() if name not in _ONLY_HOW}
