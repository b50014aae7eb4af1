"""Stage `agglomeration`: objects that the network joins when it looks again where they touch become one.

Plan: blocks of the segmentation (inputs.py), and the decision points in each (contacts.py).  Do: flood both objects of
a point again (reflooding.py, scoring.py), decide (merging.py, collecting.py), write the new ids (relabelling.py).
Collect: when every block is written the volume gets its name.  Method: Januszewski et al., Nature Methods 2018.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from apps.agglomeration.collecting import MergeRecord, Tables, collect, read_record
from apps.agglomeration.inputs import Inputs, open_inputs
from apps.agglomeration.parameters import AgglomerationParameters
from apps.agglomeration.relabelling import Relabeller
from apps.agglomeration.scoring import Scorer
from apps.core.errors import DataError
from apps.core.files import lock, make_folder
from apps.core.parameters import Result
from apps.core.parts import Phase
from apps.core.progress import Reporter
from apps.core.stage import Stage


class AgglomerationResult(Result, frozen=True, kw_only=True):
    """The agglomerated segmentation."""

    segmentation: Annotated[str, Meta(description="uint64 OME-Zarr; an object's id is the smallest of those it is of")]
    edges: Annotated[str, Meta(description="Parquet: every decision point, its scores, why it is no merger")]
    merges: Annotated[str, Meta(description="Parquet: the mergers, strongest first")]
    objects: Annotated[str, Meta(description="Parquet: object, base (ids of the segmentation in it), voxels")]
    decision: Annotated[MergeRecord | None, Meta(description="what was decided; null before the action merge")]
    blocks: Annotated[int, Meta(description="all blocks of the segmentation")]
    scored: Annotated[int, Meta(description="blocks that this run scored")]
    written: Annotated[int, Meta(description="blocks that this run wrote")]
    complete: Annotated[bool, Meta(description="whether the new segmentation is there; a part does not tell")]


def run(parameters: AgglomerationParameters, report: Reporter) -> AgglomerationResult:
    """Do an action, or all of them; what an earlier or another run has done is left as it is.

    Raises DataError and ParameterError, before any long work, where volumes, network and blocks do not fit each other,
    StateError that names a block where an action comes before the one it needs.
    """
    inputs = open_inputs(parameters)
    make_folder(parameters.work_folder)
    with _hold(parameters):
        try:
            return _do(parameters, inputs, report)
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{parameters.output}: cannot be written ({why}); give a place with room") from error


def _do(parameters: AgglomerationParameters, inputs: Inputs, report: Reporter) -> AgglomerationResult:
    action, everything = parameters.action, parameters.action == "all"
    relabeller, scored, written = Relabeller(inputs), 0, 0
    relabeller.check_output()
    if everything or action == "score":
        scored = Scorer(inputs).run(parameters.part, report).made
    if everything or action == "merge":
        collect(inputs, report)
    if everything or action == "relabel":
        written = relabeller.run(parameters.part, report)
    if everything or action == "finish":
        relabeller.finish()
    report(1, 1, "done")
    return _result(inputs, relabeller, scored, written)


@contextlib.contextmanager
def _hold(parameters: AgglomerationParameters) -> Iterator[None]:
    """Have the work folder to write in: with other parts, or alone.  Raises StateError where another process has it."""
    work = parameters.work_folder
    try:
        stream = (work / ".lock").open("a+b")
    except OSError as error:
        raise DataError(f"{work}: cannot be written ({error.strerror or error}); give a writable place") from error
    with stream:
        lock(stream, work, alone=parameters.part is None)
        yield


def _result(inputs: Inputs, relabeller: Relabeller, scored: int, written: int) -> AgglomerationResult:
    parameters = inputs.parameters
    tables, decision = Tables(parameters.work_folder), read_record(parameters.work_folder)
    return AgglomerationResult(
        segmentation=parameters.output,
        edges=str(tables.edges),
        merges=str(tables.merges),
        objects=str(tables.objects),
        decision=decision,
        blocks=len(inputs.blocks),
        scored=scored,
        written=written,
        complete=parameters.action in ("all", "finish") and decision is not None and relabeller.finished,
    )


STAGE = Stage(
    name="agglomeration",
    summary="Join objects that a flood-filling network joins when it looks again where they touch.",
    parameters=AgglomerationParameters,
    result=AgglomerationResult,
    run=run,
    output_suffix=".zarr",
    example={
        "segmentation": "deployed/segmentation.zarr",
        "image": "volume/image.zarr",
        "model": "training/checkpoint",
        "output": "deployed/agglomerated.zarr",
        "settings": {"mode": "fast"},
        "threads": 2,
    },
    phases=(Phase("score", shared=True), Phase("merge"), Phase("relabel", shared=True), Phase("finish")),
)
