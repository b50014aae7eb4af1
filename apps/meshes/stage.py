"""Stage `meshes`: surfaces of a segmentation's objects, for neuroglancer, and as PLY or OBJ.

Plan: units of the volume (apps/morphology/cutting.py).  Do: marching cubes and simplification in each (surfaces.py).
Collect: each object's surfaces are put together, and all are proved to be there (apps/morphology/assembly.py).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from apps.core.parameters import Result, write_json
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.morphology.assembly import Craft, Measures, assemble_all, rows
from apps.morphology.cutting import Segmentation
from apps.morphology.fragments import Fragment
from apps.morphology.parameters import PHASES, ObjectsParameters
from apps.morphology.place import Workplace
from apps.morphology.precomputed import encode_mesh, mesh_info, write_properties
from apps.morphology.tables import write_objects

# Fragments of an object are put together into files of about this size: few to ask for, none too large to show soon.
_FILE_BYTES = 4 << 20

Export = Literal["ply", "obj"]


class MeshesParameters(ObjectsParameters, frozen=True, kw_only=True):
    """Which objects get surfaces, and how fine."""

    min_voxels: Annotated[
        int, Meta(ge=0, description="objects with fewer voxels in the whole volume get no mesh, unless they are named")
    ] = 100
    max_error_nm: Annotated[
        float, Meta(gt=0, description="no vertex is moved further than this when a surface is simplified")
    ] = 40.0
    simplification: Annotated[
        int, Meta(ge=0, description="at most so many times fewer triangles within a shape; 0 keeps marching cubes' own")
    ] = 100
    export: Annotated[
        Export | None, Meta(description="also write every object as one file, in the output's folder of that name")
    ] = None


class MeshesResult(Result, frozen=True, kw_only=True):
    """The meshes; the counts are 0 until they are complete."""

    meshes: Annotated[str, Meta(description="the folder; `info` and `ID:0` as neuroglancer reads them")]
    complete: Annotated[bool, Meta(description="whether the folder is there now; a part alone does not tell")]
    objects: Annotated[int, Meta(ge=0, description="that have a mesh")]
    vertices: Annotated[int, Meta(ge=0, description="of all meshes")]
    triangles: Annotated[int, Meta(ge=0, description="of all meshes")]
    voxels: Annotated[int, Meta(ge=0, description="of the objects that have a mesh")]
    units: Annotated[int, Meta(ge=1, description="pieces of the volume that were worked on one by one")]


def run(parameters: MeshesParameters, report: Reporter) -> MeshesResult:
    """Make the meshes, or a share of them; what an earlier or another run has made is left as it is.

    Raises DataError where the segmentation is missing, is no OME-Zarr of integers, has negative ids, or has not the
    objects that are named, or the output cannot be written; StateError where the output is something else, or another
    process works on it.
    """
    segmentation = parameters.open_segmentation()
    place = Workplace(Path(parameters.output), "meshes", parameters.identity(segmentation))
    craft = Craft(
        segmentation=segmentation,
        min_voxels=parameters.min_voxels,
        forge=partial(_forge, parameters, segmentation),
        assemble=partial(_assemble, parameters, segmentation),
        complete=_complete,
    )
    complete = assemble_all(place, craft, parameters.action, parameters.part, report)
    totals: dict[str, Any] = (place.made() or {"totals": {}})["totals"] if complete else {}
    counts = {name: int(totals.get(name, 0)) for name in ("objects", "vertices", "triangles", "voxels")}
    return MeshesResult(meshes=parameters.output, complete=complete, units=craft.units, **counts)


def _forge(parameters: MeshesParameters, segmentation: Segmentation, unit: int) -> list[Fragment]:
    from apps.meshes.surfaces import Simplification, mesh_unit

    how = Simplification(parameters.simplification, parameters.max_error_nm)
    cut = segmentation.cut(unit)
    if not len(cut.ids):
        return []
    return mesh_unit(cut, segmentation.volume.box, segmentation.voxel_size_nm, how)


def _assemble(
    parameters: MeshesParameters, segmentation: Segmentation, folder: Path, identifier: int, fragments: list[bytes]
) -> Measures | None:
    """Write an object's fragments, its manifest, and what else is wanted of it."""
    from apps.meshes.surfaces import in_groups, joined

    unit, size = segmentation.grid.shape, segmentation.voxel_size_nm
    names, vertices, triangles = [], 0, 0
    for number, group in enumerate(in_groups(fragments, _FILE_BYTES)):
        mesh = joined(group, unit, size)
        if not len(mesh.faces):
            continue
        names.append(f"{identifier}:0:{number}")
        (folder / names[-1]).write_bytes(encode_mesh(mesh.vertices, mesh.faces))
        vertices, triangles = vertices + len(mesh.vertices), triangles + len(mesh.faces)
    if not names:
        return None
    (folder / f"{identifier}:0").write_text(json.dumps({"fragments": names}))
    if parameters.export is not None:
        _export(folder / parameters.export, identifier, parameters.export, joined(fragments, unit, size))
    return {"vertices": vertices, "triangles": triangles}


def _export(folder: Path, identifier: int, form: Export, mesh: Any) -> None:
    import zmesh

    folder.mkdir(exist_ok=True)
    whole = zmesh.Mesh(mesh.vertices, mesh.faces, None)
    (folder / f"{identifier}.{form}").write_bytes(whole.to_ply() if form == "ply" else whole.to_obj())


def _complete(folder: Path, records: list[Path]) -> None:
    write_objects(folder, rows(records), {"vertices": "int64", "triangles": "int64"})
    listed = write_properties(folder, rows(records), "triangles", "triangles of the mesh")
    write_json(folder / "info", mesh_info(listed))


STAGE = Stage(
    name="meshes",
    summary="Make meshes of a segmentation's objects, by chunk, for neuroglancer.",
    parameters=MeshesParameters,
    result=MeshesResult,
    run=run,
    example={"segmentation": "data/segmentation.zarr", "output": "data/meshes", "min_voxels": 1000},
    phases=PHASES,
)
