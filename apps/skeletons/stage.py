"""Stage `skeletons`: centre lines of a segmentation's objects, for neuroglancer, as SWC, and for the evaluation.

Plan: units of the volume (apps/morphology/cutting.py).  Do: TEASAR in each (lines.py).  Collect: each object's lines
are put together and cleaned, and all are proved to be there (apps/morphology/assembly.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from apps.core.errors import StateError
from apps.core.parameters import Result, write_json
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.morphology.assembly import Craft, Measures, assemble_all, rows
from apps.morphology.cutting import Segmentation
from apps.morphology.fragments import Fragment
from apps.morphology.parameters import PHASES, ObjectsParameters
from apps.morphology.place import Workplace
from apps.morphology.precomputed import encode_skeleton, skeleton_info, write_properties
from apps.morphology.tables import write_objects
from apps.skeletons.lines import Cleaning, Tracing, joined, trace_unit
from apps.skeletons.swc import Unit, to_swc
from apps.skeletons.table import NPZ, write_npz

SWC_FOLDER = "swc"


class SkeletonsParameters(ObjectsParameters, frozen=True, kw_only=True):
    """Which objects get skeletons, and how detailed."""

    min_voxels: Annotated[
        int,
        Meta(ge=0, description="objects with fewer voxels in the whole volume get no skeleton, unless they are named"),
    ] = 1000
    scale: Annotated[
        float,
        Meta(gt=0, description="TEASAR: what lies within so many times the distance to the boundary is covered"),
    ] = 4.0
    constant_nm: Annotated[float, Meta(ge=0, description="TEASAR: added to that reach")] = 500.0
    dust_voxels: Annotated[
        int, Meta(ge=0, description="connected pieces of no more voxels within one unit are passed over")
    ] = 100
    min_length_nm: Annotated[float, Meta(ge=0, description="pieces of a skeleton no longer than this are removed")] = (
        1000.0
    )
    tick_nm: Annotated[float, Meta(ge=0, description="side branches up to this length are removed; 0 keeps all")] = (
        500.0
    )
    soma_detection_nm: Annotated[
        float, Meta(gt=0, description="an object with a larger distance to its boundary is looked at as a cell body")
    ] = 1100.0
    soma_acceptance_nm: Annotated[
        float, Meta(gt=0, description="and is traced from its middle where that distance is larger than this")
    ] = 3500.0
    swc_unit: Annotated[Unit, Meta(description="what the numbers in SWC files are in")] = "micrometer"


class SkeletonsResult(Result, frozen=True, kw_only=True):
    """The skeletons; the counts are 0 until they are complete."""

    skeletons: Annotated[str, Meta(description="the folder; `info` and `ID` as neuroglancer reads them, `swc/ID.swc`")]
    npz: Annotated[str, Meta(description="all of them in one file, as the stage evaluation reads skeletons")]
    complete: Annotated[bool, Meta(description="whether the folder is there now; a part alone does not tell")]
    objects: Annotated[int, Meta(ge=0, description="that have a skeleton")]
    nodes: Annotated[int, Meta(ge=0, description="of all skeletons")]
    length_nm: Annotated[float, Meta(ge=0, description="of all skeletons")]
    units: Annotated[int, Meta(ge=1, description="pieces of the volume that were worked on one by one")]


def run(parameters: SkeletonsParameters, report: Reporter) -> SkeletonsResult:
    """Make the skeletons, or a share of them; what an earlier or another run has made is left as it is.

    Raises StateError where kimimaro is not installed, the output is something else, or another process works on it;
    DataError where the segmentation is missing, is no OME-Zarr of integers, has negative ids, or has not the objects
    that are named, or the output cannot be written.
    """
    _check_installed()
    segmentation = parameters.open_segmentation()
    place = Workplace(Path(parameters.output), "skeletons", parameters.identity(segmentation))
    craft = Craft(
        segmentation=segmentation,
        min_voxels=parameters.min_voxels,
        forge=partial(_forge, parameters, segmentation),
        assemble=partial(_assemble, parameters, segmentation),
        complete=partial(_complete, segmentation),
    )
    complete = assemble_all(place, craft, parameters.action, parameters.part, report)
    totals: dict[str, Any] = (place.made() or {"totals": {}})["totals"] if complete else {}
    return SkeletonsResult(
        skeletons=parameters.output,
        npz=str(Path(parameters.output) / NPZ),
        complete=complete,
        objects=int(totals.get("objects", 0)),
        nodes=int(totals.get("nodes", 0)),
        length_nm=totals.get("length_nm", 0.0),
        units=craft.units,
    )


def _check_installed() -> None:
    if importlib.util.find_spec("kimimaro") is None:
        raise StateError(
            "kimimaro, which traces skeletons and is under the GPL, is not installed; "
            "install it with: make environment EXTRAS=cpu,skeletons"
        )


def _forge(parameters: SkeletonsParameters, segmentation: Segmentation, unit: int) -> list[Fragment]:
    how = Tracing(
        parameters.scale,
        parameters.constant_nm,
        parameters.dust_voxels,
        parameters.soma_detection_nm,
        parameters.soma_acceptance_nm,
    )
    cut = segmentation.cut(unit)
    return trace_unit(cut, segmentation.voxel_size_nm, how) if len(cut.ids) else []


def _assemble(
    parameters: SkeletonsParameters, segmentation: Segmentation, folder: Path, identifier: int, fragments: list[bytes]
) -> Measures | None:
    """Write an object's skeleton for neuroglancer and as SWC."""
    size = segmentation.voxel_size_nm
    line = joined(fragments, size, Cleaning(parameters.min_length_nm, parameters.tick_nm))
    if line is None:
        return None
    (folder / str(identifier)).write_bytes(encode_skeleton(line.places_nm(size), line.edges, line.radius_nm))
    (folder / SWC_FOLDER).mkdir(exist_ok=True)
    (folder / SWC_FOLDER / f"{identifier}.swc").write_text(to_swc(line, size, parameters.swc_unit))
    return {"nodes": len(line.nodes), "edges": len(line.edges), "length_nm": line.length_nm(size)}


def _complete(segmentation: Segmentation, folder: Path, records: list[Path]) -> None:
    def objects() -> Iterator[dict[str, Any]]:
        return (row for some in rows(records) for row in some)

    write_objects(folder, rows(records), {"nodes": "int64", "edges": "int64", "length_nm": "double"})
    write_npz(folder, objects, segmentation.voxel_size_nm)
    listed = write_properties(folder, rows(records), "length_nm", "length of the skeleton in nm")
    write_json(folder / "info", skeleton_info(listed))


STAGE = Stage(
    name="skeletons",
    summary="Make skeletons of a segmentation's objects, by chunk, for neuroglancer and as SWC.",
    parameters=SkeletonsParameters,
    result=SkeletonsResult,
    run=run,
    check_installed=_check_installed,
    example={"segmentation": "data/segmentation.zarr", "output": "data/skeletons", "min_voxels": 10000},
    phases=PHASES,
)
