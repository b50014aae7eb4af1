"""Reconciliation: the segmentations of overlapping subvolumes become one segmentation with ids that hold everywhere.

Plan: the grid says which read boxes overlap.  Do: compare each subvolume with its neighbours (units.py), in any number
of jobs.  Collect: solve for the objects, out of core (solving.py).  Do again: relabel each write box (making.py), in
any number of jobs.  Collect: when every box is there, the segmentation gets its name (manifest.py).

Everything but that name lies in the work folder, and stays there: it is the evidence of every merge (evidence.py), and
what a later run need not do again.  Sources: see linking.py, union.py and keeping_apart.py.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import folder_in_the_making, try_lock
from apps.core.parameters import json_hash
from apps.core.parts import Phase, share
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import VoxelSize
from apps.reconciliation.box_records import is_of, written_by
from apps.reconciliation.linking import LinkRule
from apps.reconciliation.making import Making
from apps.reconciliation.manifest import finish, restate, verify
from apps.reconciliation.pair_lists import read_pairs
from apps.reconciliation.pieces import Pieces
from apps.reconciliation.settings import (
    MANIFEST,
    ReconciliationParameters,
    ReconciliationResult,
    SeamSummary,
    choose_chunks,
)
from apps.reconciliation.solution import OBJECTS, SEAMS, SUMMARY, Solution, SolutionRecord
from apps.reconciliation.solving import Rules, solve
from apps.reconciliation.units import UnitFiles

_FORMAT = 1
_SOLUTION = "solution"


def run(parameters: ReconciliationParameters, report: Reporter) -> ReconciliationResult:
    """Do a phase, or all; what an earlier or another run has done is left as it is.

    Raises DataError that names the subvolume where one is missing, damaged, not of its read box's shape or with ids
    that overflow, and StateError where an earlier phase is not done, another process works on it alone, or `output` is
    there and not of this work folder.
    """
    if parameters.action == "verify":
        verify(Path(parameters.output), parameters.work_folder / MANIFEST, report)
        return _result(parameters, 0)
    _check_output(parameters)
    rules = Rules(
        LinkRule(**{name: getattr(parameters, name) for name in LinkRule.__struct_fields__}),
        read_pairs(parameters.cut),
        read_pairs(parameters.forbidden),
    )
    phases = _PHASES if parameters.action == "all" else (parameters.action,)
    done = 0
    with _hold(parameters.work_folder, Path(parameters.output), alone=parameters.part is None):
        for number, phase in enumerate(phases):
            try:
                done += _do(phase, parameters, rules, _within(report, number, len(phases)))
            except OSError as error:
                why = error.strerror or error
                raise DataError(
                    f"{error.filename or parameters.work_folder}: cannot be read or written ({why}); see to it, and "
                    "run the same again"
                ) from error
    report(1, 1, "done")
    return _result(parameters, done)


def _do(phase: str, parameters: ReconciliationParameters, rules: Rules, report: Reporter) -> int:
    """One phase; returns how many units were done."""
    if phase == "compare":
        return _compare(parameters, report)
    if phase == "relabel":
        return _relabel(parameters, rules, report)
    if phase == "solve":
        _solve(parameters, rules, report)
    else:
        _finish(parameters, rules, report)
    return 0


def _units(parameters: ReconciliationParameters) -> UnitFiles:
    return UnitFiles(parameters.work_folder, Pieces(parameters.grid, Path(parameters.pieces)))


def _compare(parameters: ReconciliationParameters, report: Reporter) -> int:
    """Plan and do: a unit file for each subvolume of the share; returns how many were made."""
    units = _units(parameters)
    work, old = share(len(units), parameters.part), array("q")
    for number, header in units.current(work):
        report(0, len(work), "checking units")
        if header is None:
            old.append(number)
    for done, number in enumerate(old, start=len(work) - len(old)):
        report(done, len(work), "comparing subvolumes")
        units.make(number)
    return len(old)


def _solve(parameters: ReconciliationParameters, rules: Rules, report: Reporter) -> None:
    """Collect: the objects, from all units; and a volume for the relabelled boxes."""
    units = _units(parameters)
    everything, sizes = hashlib.sha256(), set()
    for number, (digest, size) in enumerate(units.check_current()):
        report(number, 2 * len(units), "checking units")
        everything.update(digest.encode())
        sizes.add(size)
    voxel_size = parameters.voxel_size_nm or _only(sizes)
    identity = json_hash([_FORMAT, len(units), everything.hexdigest(), rules.hash(), voxel_size])
    folder = parameters.work_folder / _SOLUTION
    solution = Solution.open(folder)
    # `starts` may have been cut short where the last subvolumes are empty, which its last number does not tell.
    if solution is None or solution.record.identity != identity or len(solution.starts) != len(units) + 1:
        with folder_in_the_making(folder) as partial:
            summary = solve(units, rules, partial, _within(report, 1, 2))
            record = SolutionRecord(identity=identity, rules=rules.hash(), voxel_size_nm=voxel_size, summary=summary)
            record.save(partial / SUMMARY)
    making = _making(parameters, rules)
    if not making.is_finished():
        making.prepare()


def _relabel(parameters: ReconciliationParameters, rules: Rules, report: Reporter) -> int:
    """Do: the write box of each subvolume of the share; returns how many were written."""
    making = _making(parameters, rules)
    if not making.path.exists() and making.is_finished():
        return 0
    making.volume  # noqa: B018 (a clear error where it is not there, though its boxes' records may be)
    work, made = share(len(making.units), parameters.part), 0
    for done, number in enumerate(work):
        report(done, len(work), "relabelling")
        made += making.write(number)
    return made


def _finish(parameters: ReconciliationParameters, rules: Rules, report: Reporter) -> None:
    """Collect: prove that nothing is missing, and give the segmentation its name."""
    making = _making(parameters, rules)
    if making.is_finished():
        restate(making)
    else:
        finish(making, report)


def _making(parameters: ReconciliationParameters, rules: Rules) -> Making:
    solution = Solution.expect(parameters.work_folder / _SOLUTION)
    if solution.record.rules != rules.hash():
        raise StateError(f"{solution.folder}: is of another rule or other lists of pairs; run the action solve first")
    return Making(
        units=_units(parameters),
        solution=solution,
        output=Path(parameters.output),
        chunks=choose_chunks(parameters.grid, parameters.chunks),
        manifest=parameters.work_folder / MANIFEST,
        fill=parameters.fill,
    )


def _only(sizes: set[VoxelSize]) -> VoxelSize:
    if len(sizes) > 1:
        some = ", ".join(str(size) for size in sorted(sizes)[:3])
        raise ParameterError(f"voxel_size_nm: the pieces have different ones ({some}); give it (zyx, nanometres)")
    return next(iter(sizes))


def _check_output(parameters: ReconciliationParameters) -> None:
    """A volume of that name is replaced only where it is known to be an earlier answer."""
    output, manifest = Path(parameters.output), parameters.work_folder / MANIFEST
    if output.exists() and not (manifest.is_file() and is_of(manifest, output)):
        raise StateError(
            f"{parameters.output}: exists, and {parameters.work_folder} does not say that this reconciliation made it; "
            "give another output, or remove it"
        )


@contextlib.contextmanager
def _hold(work: Path, output: Path, alone: bool) -> Iterator[None]:
    """Have the work folder to write in: with other parts, or alone."""
    try:
        for folder in (work, output.parent):
            folder.mkdir(parents=True, exist_ok=True)
        stream = (work / ".lock").open("a+b")
    except OSError as error:
        raise DataError(f"{work}: cannot be written ({error.strerror or error}); give a writable place") from error
    with stream:
        if work.stat().st_dev != output.parent.stat().st_dev:
            raise ParameterError(
                f"work {work}: is on another file system than {output}, which is made in it and renamed; give one there"
            )
        if not try_lock(stream, shared=not alone):
            raise StateError(f"{work}: another process works on this reconciliation; wait for it, or end it first")
        yield


def _within(report: Reporter, number: int, count: int) -> Reporter:
    """A reporter of one of several equal stretches."""

    def inner(done: float, total: float, what: str = "") -> None:
        report(number + (done / total if total else 1.0), count, what)

    return inner


def _result(parameters: ReconciliationParameters, units: int) -> ReconciliationResult:
    work = parameters.work_folder
    solution, manifest = Solution.open(work / _SOLUTION), work / MANIFEST
    complete = parameters.action in ("all", "finish", "verify")
    known = ReconciliationResult(segmentation=parameters.output, complete=complete, work=str(work), units=units)
    if solution is None or parameters.action == "compare":
        return known
    if parameters.action == "verify" and written_by(manifest) != solution.record.identity:
        return replace(known, manifest=str(manifest))  # what is solved now tells of a volume that is not there yet
    summary = solution.record.summary
    box = None
    if summary.worst_face is not None:
        first, second = (parameters.grid.subvolume(number).read_box for number in summary.worst_face)
        box = first.intersection(second)
    seams = SeamSummary(
        file=str(solution.folder / SEAMS),
        faces=summary.faces,
        agreement=summary.agreement,
        mean_vi=summary.mean_vi,
        worst_agreement=summary.worst_agreement,
        worst_face=summary.worst_face,
        worst_box=box,
    )
    return ReconciliationResult(
        segmentation=parameters.output,
        complete=complete,
        work=str(work),
        units=units,
        objects=summary.objects,
        links=summary.links,
        refused=summary.refused,
        links_file=str(solution.links_file),
        objects_file=str(solution.folder / OBJECTS),
        seams=seams,
        manifest=str(manifest) if complete else None,
    )


_PHASES = ("compare", "solve", "relabel", "finish")

STAGE = Stage(
    name="reconciliation",
    summary="Merge the segmentations of overlapping subvolumes into one volume.",
    parameters=ReconciliationParameters,
    result=ReconciliationResult,
    run=run,
    example={
        "grid": {"box": {"offset": [0, 0, 0], "shape": [64, 64, 128]}, "shape": [64, 64, 64], "overlap": [0, 0, 16]},
        "pieces": "subvolumes",
        "output": "segmentation.zarr",
        "min_overlap_voxels": 100,
    },
    output_suffix=".zarr",
    phases=tuple(Phase(phase, shared=phase in ("compare", "relabel")) for phase in _PHASES),
)
