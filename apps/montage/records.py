"""What montage says about a section: the JSON file beside the image, and the faults that it names."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from apps.core.parameters import Result

Point = tuple[float, float]

FaultKind = Literal[
    "missing_file",
    "absent_tile",
    "unreadable_file",
    "not_grey",
    "wrong_size",
    "blank_tile",
    "repeated_row",
    "superseded_tile",
    "repeated_image",
    "mixed_depth",
    "disconnected_tile",
    "blank_section",
    "unmatched_section",
]


class Fault(Result, frozen=True, kw_only=True):
    """Something wrong with a tile or a section that montage could work around."""

    kind: Annotated[FaultKind, Meta(description="what it is")]
    path: Annotated[str | None, Meta(description="the tile, as the table names it; null where the section is meant")]
    message: Annotated[str, Meta(description="what was found and what was done about it")]


class PlacedTile(Result, frozen=True, kw_only=True):
    """A tile and where it lies in the section image."""

    path: Annotated[str, Meta(description="as the table names it")]
    y: Annotated[float, Meta(description="row of its first pixel in the section image")]
    x: Annotated[float, Meta(description="column of its first pixel in the section image")]
    connected: Annotated[bool, Meta(description="whether pairs tie it to the largest group of tiles")]
    rendered: Annotated[bool, Meta(description="whether its pixels are in the section image")]
    gain: Annotated[float, Meta(description="contrast factor that equalises it with its neighbours")]
    brightness: Annotated[float, Meta(description="grey levels added to the same end")]


class MeasuredPair(Result, frozen=True, kw_only=True):
    """Two overlapping tiles, as indices into the section's tiles."""

    a: Annotated[int, Meta(ge=0, description="index of the first tile")]
    b: Annotated[int, Meta(ge=0, description="index of the second tile")]
    offset: Annotated[Point | None, Meta(description="measured position of b less that of a, (y, x) pixels")]
    confidence: Annotated[float, Meta(description="normalised cross correlation at that offset, -1 to 1")]
    significance: Annotated[float, Meta(description="that correlation over its spread for unrelated images")]
    residual: Annotated[float | None, Meta(description="distance of the solved from the measured offset, pixels")]
    used: Annotated[bool, Meta(description="false where the pair was rejected")]


class Scores(Result, frozen=True, kw_only=True):
    """Quality without ground truth; null where there is no pair to tell."""

    seam_residual: Annotated[float | None, Meta(description="RMS residual of the pairs used, pixels; low is good")]
    overlap_correlation: Annotated[
        float | None,
        Meta(description="mean correlation of all overlaps at the solved positions, rejected pairs too; high is good"),
    ]
    pairs_used: Annotated[float | None, Meta(description="part of the overlapping pairs that was used")]
    tiles_connected: Annotated[float | None, Meta(description="part of the section's readable tiles that is connected")]


class SectionRecord(Result, frozen=True, kw_only=True):
    """`sections/NNNNN.json`, written last: where it is there, the section image is whole."""

    section: Annotated[int, Meta(ge=0, description="number of the section")]
    inputs: Annotated[str, Meta(description="hash of the parameters and table rows that it was made from")]
    shape: Annotated[tuple[int, int], Meta(description="of the section image, (rows, columns); 0, 0 where none is")]
    origin: Annotated[Point, Meta(description="pixel 0, 0 of the section image in stage coordinates, (y, x)")]
    tiles: Annotated[tuple[PlacedTile, ...], Meta(description="readable tiles, in the table's order")]
    pairs: Annotated[tuple[MeasuredPair, ...], Meta(description="overlapping tiles")]
    scores: Annotated[Scores, Meta(description="quality without ground truth")]
    grey_range: Annotated[Point | None, Meta(description="16-bit values that became 0 and 255; null for 8-bit tiles")]
    flat_field: Annotated[
        tuple[float, ...] | None, Meta(description="its polynomial coefficients; null where none was applied")
    ]
    faults: Annotated[tuple[Fault, ...], Meta(description="all that was wrong, and what was done about it")]
