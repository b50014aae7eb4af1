"""Parameters and result of the stage `reconciliation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Result
from apps.core.parts import Part
from apps.core.subvolumes import SubvolumeGrid
from apps.core.supervoxels import MAX_SUBVOLUMES
from apps.core.volumes import VoxelSize
from apps.reconciliation.linking import LinkRule

Action = Literal["all", "compare", "solve", "relabel", "finish", "verify"]

# In the work folder: the volume until it gets its name, and the boxes of the one that has it.
IN_THE_MAKING, MANIFEST = "segmentation.zarr", "manifest.parquet"

_SHARED = ("compare", "relabel")
_USUAL_CHUNK = 64
_SMALLEST_CHUNK, _LARGEST_CHUNK = 16, 128


class ReconciliationParameters(LinkRule, frozen=True, kw_only=True):
    """What to merge and where to; the rule's fields say when two objects are one."""

    grid: Annotated[SubvolumeGrid, Meta(description="the subvolumes; the merged segmentation covers the grid's box")]
    pieces: Annotated[
        str,
        Meta(
            min_length=1,
            description="folder of the segmented subvolumes: labels of the read box of subvolume i, with ids that hold "
            "within it only, at 000/000/00000000i.zarr (see apps/core/subvolumes.py)",
        ),
    ]
    output: Annotated[str, Meta(description="the merged segmentation, an OME-Zarr folder ending in .zarr")]
    work: Annotated[
        str | None,
        Meta(
            description="folder for what is found on the way, which is also the evidence of every merge; "
            "NAME-reconciliation beside NAME.zarr by default"
        ),
    ] = None
    voxel_size_nm: Annotated[
        VoxelSize | None, Meta(description="zyx in nanometres; that of the pieces by default, which then has to be one")
    ] = None
    chunks: Annotated[
        Triple | None,
        Meta(
            description="chunks of the output, zyx; the grid's shape is a multiple of them, so that no two subvolumes "
            "write to one. By default the divisors of the shape that are nearest to 64"
        ),
    ] = None
    fill: Annotated[
        bool,
        Meta(
            description="voxels that a subvolume leaves empty are of the object that a neighbour sees there (of "
            "several neighbours the first), as it may have come from another side; nothing is joined by that"
        ),
    ] = True
    forbidden: Annotated[
        str | None,
        Meta(
            description="CSV or Parquet table with columns a and b: supervoxels that must not be in one object. Where "
            "links would join them, the weakest (of fewest shared voxels) are not used"
        ),
    ] = None
    cut: Annotated[
        str | None,
        Meta(description="table of the same form: links that are not to be used, which is how a merge is undone"),
    ] = None
    action: Annotated[
        Action,
        Meta(
            description="all, or one phase: compare subvolumes with their neighbours, solve for the objects, relabel "
            "box by box, finish (nothing is missing: the output gets its name); or verify a finished output"
        ),
    ] = "all"
    part: Annotated[
        Part | None, Meta(description="this job's share of compare or relabel, of several jobs at the same time")
    ] = None

    def check(self) -> None:
        if not self.output.endswith(".zarr"):
            raise ParameterError(f"output {self.output!r}: expected a name that ends in .zarr")
        if len(self.grid) > MAX_SUBVOLUMES:
            raise ParameterError(f"grid: has {len(self.grid)} subvolumes; expected {MAX_SUBVOLUMES} at most")
        # Interior ones have the largest read boxes; an extent is the write box's with the whole overlap.
        z, y, x = (s + o for s, o in zip(self.grid.shape, self.grid.overlap, strict=True))
        if z * y * x >= 1 << 32:
            raise ParameterError(f"grid: subvolumes of {z} x {y} x {x} voxels; expected fewer than 2^32 voxels")
        if self.voxel_size_nm is not None and min(self.voxel_size_nm) <= 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive nanometres")
        if self.part is not None and self.action not in _SHARED:
            raise ParameterError(f"part: the action {self.action} is the work of one job; parts share {_SHARED}")
        choose_chunks(self.grid, self.chunks)

    @property
    def work_folder(self) -> Path:
        return Path(self.work or self.output.removesuffix(".zarr") + "-reconciliation")


def choose_chunks(grid: SubvolumeGrid, chunks: Triple | None = None) -> Triple:
    """The chunks of the output, zyx: those given, or the divisors of the grid's shape that are nearest to 64.

    Raises ParameterError where they are no divisors, or there are none of 16 to 128 voxels.
    """
    chosen = []
    for axis, name in enumerate("zyx"):
        extent, given = grid.shape[axis], None if chunks is None else chunks[axis]
        alone = grid.counts[axis] == 1
        if given is not None:
            if given < 1 or (extent % given and not alone):
                raise ParameterError(
                    f"grid: subvolumes of {extent} voxels along {name} do not end where chunks of {given} do; expected "
                    "a multiple of the chunks, so that no two subvolumes write to one chunk"
                )
            chosen.append(given)
        elif alone:
            chosen.append(min(extent, _USUAL_CHUNK))
        else:
            fitting = [n for n in range(min(extent, _SMALLEST_CHUNK), _LARGEST_CHUNK + 1) if extent % n == 0]
            if not fitting:
                raise ParameterError(
                    f"grid: subvolumes of {extent} voxels along {name} cannot be cut into chunks of {_SMALLEST_CHUNK} "
                    f"to {_LARGEST_CHUNK}; expected a multiple of {_USUAL_CHUNK}, or give chunks"
                )
            chosen.append(min(fitting, key=lambda n: (abs(n - _USUAL_CHUNK), n)))
    return chosen[0], chosen[1], chosen[2]


class SeamSummary(Result, frozen=True, kw_only=True):
    """How well neighbours agree where both have looked."""

    file: Annotated[str, Meta(description="Parquet table of every face")]
    faces: Annotated[int, Meta(description="pairs of subvolumes whose read boxes overlap")]
    agreement: Annotated[
        float | None,
        Meta(description="share of the voxels that both fill whose two objects are linked, over all faces"),
    ]
    mean_vi: Annotated[float | None, Meta(description="VI of the two segmentations in bits, mean over those voxels")]
    worst_agreement: Annotated[float | None, Meta(description="agreement of the worst face")]
    worst_face: Annotated[tuple[int, int] | None, Meta(description="its two subvolumes")]
    worst_box: Annotated[Box | None, Meta(description="where it is")]


class ReconciliationResult(Result, frozen=True, kw_only=True):
    """The merged segmentation; what is not known yet is None."""

    segmentation: Annotated[
        str, Meta(description="uint64 OME-Zarr volume; an object's id is the smallest of its supervoxels'")
    ]
    complete: Annotated[bool, Meta(description="whether the segmentation is there, whole; a part does not tell")]
    work: Annotated[str, Meta(description="folder of the evidence")]
    units: Annotated[int, Meta(description="subvolumes that this run compared or relabelled; others were done before")]
    objects: Annotated[int | None, Meta(description="objects in the merged segmentation")] = None
    links: Annotated[int | None, Meta(description="pairs of objects that are linked")] = None
    refused: Annotated[int | None, Meta(description="links refused for the sake of forbidden pairs")] = None
    links_file: Annotated[
        str | None, Meta(description="Parquet table of all pairs of objects that share voxels, linked or not, and why")
    ] = None
    objects_file: Annotated[str | None, Meta(description="Parquet table of the objects")] = None
    seams: Annotated[SeamSummary | None, Meta(description="agreement across overlaps")] = None
    manifest: Annotated[
        str | None, Meta(description="Parquet table of the write boxes with the SHA-256 of their voxels")
    ] = None
