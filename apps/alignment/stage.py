"""Stage `alignment`: the sections of a montage become one volume in which tissue continues from plane to plane.

`match` finds what neighbouring sections have in common, a section at a time; `solve` bends all sections at once so that
it comes to lie together; `render` writes groups of chunks of `aligned.zarr`; `score` says how good it is, per section,
in `alignment.json`.  `all` does the four in a row.  Each part is a file that says what it depends on: a part that is
there is not made again, so a run that was killed goes on, and the bytes are the same however the work was divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from apps.alignment.locks import solving_alone, using_volume
from apps.alignment.pairing import match_section
from apps.alignment.scoring import AlignmentReport, load_report, score_sections
from apps.alignment.settings import MatchSettings, RenderSettings, SolveSettings
from apps.alignment.solving import solve_stack
from apps.alignment.stack import Fault, Stack, open_stack
from apps.alignment.volume import (
    Layout,
    Paths,
    describe,
    open_aligned,
    plan_groups,
    plane_identities,
    prepare_volume,
    render_group,
)
from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import make_folder
from apps.core.parameters import Parameters, Result, json_hash, write_json
from apps.core.progress import Reporter
from apps.core.stage import Stage

T = TypeVar("T")
Action = Literal["all", "match", "solve", "render", "score"]


class AlignmentParameters(Parameters, frozen=True, kw_only=True):
    """What to align, which part of the work to do, and how."""

    montage: Annotated[str, Meta(min_length=1, description="output folder of montage: it holds sections/NNNNN.zarr")]
    output: Annotated[str, Meta(min_length=1, description="folder that gets aligned.zarr, meshes and alignment.json")]
    action: Annotated[Action, Meta(description="the part of the work to do: match, solve, render, score; or all")] = (
        "all"
    )
    sections: Annotated[
        tuple[int, ...] | None, Meta(description="match these with earlier ones; null: all (only for match)")
    ] = None
    groups: Annotated[
        tuple[int, ...] | None, Meta(description="render these groups of chunks; null: all (only for render)")
    ] = None
    first: Annotated[int | None, Meta(description="first section; null: the first there is")] = None
    last: Annotated[int | None, Meta(description="last section; null: the last there is")] = None
    damaged: Annotated[
        tuple[int, ...], Meta(description="sections not to be matched: their neighbours place them")
    ] = ()
    held: Annotated[
        tuple[int, ...],
        Meta(description="sections that a gate holds back: as if they were not there, neither matched nor placed"),
    ] = ()
    matching: Annotated[MatchSettings, Meta(description="how sections are matched")] = MatchSettings()
    solving: Annotated[SolveSettings, Meta(description="how the meshes of springs are solved")] = SolveSettings()
    rendering: Annotated[RenderSettings, Meta(description="how the volume is written")] = RenderSettings()
    workers: Annotated[int, Meta(ge=1, le=256, description="processes that match and render")] = 1

    def check(self) -> None:
        if self.sections is not None and self.action != "match":
            raise ParameterError(f"sections: only the action match takes some of them, and this is {self.action}")
        if self.groups is not None and self.action != "render":
            raise ParameterError(f"groups: only the action render takes some of them, and this is {self.action}")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ParameterError(f"first {self.first}, last {self.last}: expected the first not to come after the last")
        if Path(self.montage).absolute() == Path(self.output).absolute():
            raise ParameterError(f"output {self.output}: is the montage's folder; give one of its own")


class AlignmentResult(Result, frozen=True, kw_only=True):
    """What was done, and where it is."""

    action: Annotated[Action, Meta(description="the part of the work that was done")]
    made: Annotated[int, Meta(ge=0, description="pairs matched and groups rendered now")]
    kept: Annotated[int, Meta(ge=0, description="pairs and groups that were there from the same parameters and images")]
    sections: Annotated[int, Meta(ge=0, description="sections of the stack, missing ones included")]
    groups: Annotated[int | None, Meta(description="rendering jobs there are; null before solve")]
    shape: Annotated[Triple | None, Meta(description="of the aligned volume, zyx; null before solve")]
    aligned: Annotated[str | None, Meta(description="the aligned volume; null until all of it is rendered")]
    report: Annotated[str | None, Meta(description="scores, pairs and faults of every section; null before score")]
    faults: Annotated[tuple[Fault, ...], Meta(description="sections with something wrong, and what was done about it")]


def run(parameters: AlignmentParameters, report: Reporter) -> AlignmentResult:
    """Do the part of the work that `action` names.

    Raises DataError where there is no section to align, or the output cannot be written, ParameterError where a section
    or group that is asked for is not part of the stack, StateError where an earlier action has not been done.
    """
    with threadpool_limits(1):  # small matrices gain nothing from threads, and jobs share a node
        return _do(parameters, report)


def _do(parameters: AlignmentParameters, report: Reporter) -> AlignmentResult:
    work = _Work(parameters, report)
    match parameters.action:
        case "match":
            work.match()
        case "solve":
            work.solve()
        case "render":
            work.render()
        case "score":
            work.score()
        case "all":
            work.match()
            work.solve()
            work.render()
            work.score()
    return work.result()


class _Work:
    """The actions on one stack, and what they have done so far."""

    def __init__(self, parameters: AlignmentParameters, report: Reporter) -> None:
        self._parameters, self._report = parameters, report
        self._stack = _stack(parameters)
        self._paths = Paths(Path(parameters.output))
        self._made = self._kept = 0
        self._layout: Layout | None = None
        self._aligned: str | None = None
        self._written: str | None = None
        make_folder(self._paths.output)

    def match(self) -> None:
        chosen = self._parameters.sections
        sections: Sequence[int] = self._stack.numbers if chosen is None else chosen
        outside = [section for section in sections if section not in self._stack.numbers]
        if outside:
            raise ParameterError(f"sections {outside}: the stack goes from {self._stack.first} to {self._stack.last}")
        for done, (made, kept) in enumerate(self._spread(_match, sections)):
            self._made, self._kept = self._made + made, self._kept + kept
            self._report(done + 1, len(sections), "matching")

    def solve(self) -> None:
        p = self._parameters
        with solving_alone(self._paths.output):
            solution = solve_stack(self._stack, p.matching, p.solving, self._paths.output, self._report)
            self._layout = describe(self._stack, solution, p.rendering, self._paths.output)
            with using_volume(self._paths.output, alone=True):
                prepare_volume(self._layout, p.rendering, self._paths)

    def render(self) -> None:
        with using_volume(self._paths.output, alone=False):
            groups = plan_groups(self._solved(), self._parameters.rendering)
            chosen = self._parameters.groups
            outside = [group for group in chosen or () if not 0 <= group < len(groups)]
            if outside:
                raise ParameterError(f"groups {outside}: there are {len(groups)}, counted from 0")
            numbers: Sequence[int] = range(len(groups)) if chosen is None else chosen
            for done, made in enumerate(self._spread(_render, numbers)):
                self._made, self._kept = self._made + made, self._kept + (not made)
                self._report(done + 1, len(numbers), "rendering")

    def score(self) -> None:
        with using_volume(self._paths.output, alone=False):
            layout, settings = self._solved(), self._parameters.rendering
            volume = open_aligned(layout, settings, self._paths)
            identity = json_hash([layout.identity, settings.to_dict()])
            self._aligned, self._written = str(self._paths.volume), str(self._paths.report)
            before = load_report(self._paths.report)
            if before is not None and before.identity == identity:
                return
            known = before.sections if before is not None else ()
            pixels = plane_identities(layout, settings)
            written = AlignmentReport(
                identity=identity,
                origin=layout.origin,
                shape=layout.shape,
                sections=score_sections(volume, layout.sections, pixels, known, self._report),
                pairs=layout.pairs,
                faults=layout.faults,
            )
            write_json(self._paths.report, written.to_dict())

    def result(self) -> AlignmentResult:
        p, layout = self._parameters, self._layout
        faults = (
            layout.faults if layout is not None else tuple(fault for _, fault in sorted(self._stack.faults.items()))
        )
        return AlignmentResult(
            action=p.action,
            made=self._made,
            kept=self._kept,
            sections=len(self._stack.numbers),
            groups=None if layout is None else len(plan_groups(layout, p.rendering)),
            shape=None if layout is None else layout.shape,
            aligned=self._aligned,
            report=self._written,
            faults=faults,
        )

    def _solved(self) -> Layout:
        if self._layout is None:
            if not self._paths.solution.is_file() or not self._paths.volume.is_dir():
                raise StateError(f'{self._paths.output}: is not solved; run the action "solve" first')
            try:
                self._layout = Layout.load(self._paths.solution)
            except ParameterError as error:
                raise DataError(f'{error}; run the action "solve" again') from error
        return self._layout

    def _spread(self, function: Callable[[AlignmentParameters, int], T], items: Iterable[int]) -> Iterator[T]:
        """The function's answers in order, from as many processes as are asked for."""
        numbers = list(items)
        if self._parameters.workers == 1 or len(numbers) < 2:
            yield from (function(self._parameters, number) for number in numbers)
            return
        # Fresh processes: a fork would copy the threads' locks of whatever has been imported.
        with ProcessPoolExecutor(self._parameters.workers, get_context("spawn"), _keep_to_one_core) as pool:
            yield from pool.map(function, [self._parameters] * len(numbers), numbers)


def _stack(parameters: AlignmentParameters) -> Stack:
    p = parameters
    return open_stack(p.montage, p.output, p.first, p.last, p.damaged, p.held)


def _keep_to_one_core() -> None:
    """Of a worker process: the processes are as many as there shall be threads."""
    threadpool_limits(1)


def _match(parameters: AlignmentParameters, section: int) -> tuple[int, int]:
    return match_section(_stack(parameters), section, parameters.matching, Path(parameters.output))


def _render(parameters: AlignmentParameters, group: int) -> bool:
    paths = Paths(Path(parameters.output))
    return render_group(_stack(parameters), Layout.load(paths.solution), parameters.rendering, group, paths)


STAGE = Stage(
    name="alignment",
    summary="Align the sections of a montage into one volume: match, solve, render, score.",
    parameters=AlignmentParameters,
    result=AlignmentResult,
    run=run,
    example={
        "montage": "montage",
        "output": "alignment",
        "action": "all",
        "damaged": [17],
        "matching": {"spacing": 32, "max_rotation_deg": 20.0},
        "solving": {"stiffness": 0.5, "anchor": 0.003},
        "workers": 2,
    },
)
