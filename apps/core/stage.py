"""The stage contract, and the one main that every `python -m apps.<stage> parameters.json` runs.

A stage is a function of one `Parameters` object that returns one `Result`.  Its main writes `result.json` beside the
parameters, atomically and last: exit code 0 means that it is there.  A failure writes `failure.json` (kind, message).

A stage may be started as several ranks (`mpiexec -n 4 python -m apps.training parameters.json`), where it says that it
can work as such: then rank 0 alone reports progress and writes `result.json`, and a rank that fails writes
`failure.json`, where no other has done so before, and ends all.

With `--time-limit SECONDS` a process that has not ended by then is, and its failure is of kind `hung`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from apps.core.errors import (
    EXIT_CODE_OF_INTERRUPT,
    DataError,
    EnsembleError,
    FailureKind,
    NoRoomError,
    ParameterError,
    kind_of,
)
from apps.core.parameters import Parameters, Result, write_json
from apps.core.parts import Phase
from apps.core.progress import Reporter, silent, stage_reporter
from apps.core.ranks import ONE_RANK, Launch, end_all_ranks, read_launch
from apps.core.suggestions import did_you_mean
from apps.core.time_limit import parse_time_limit, time_limit

P = TypeVar("P", bound=Parameters)
R = TypeVar("R", bound=Result)

RESULT_FILE = "result.json"
FAILURE_FILE = "failure.json"

# Stage name -> module that holds its `STAGE`.  To add a stage: write the module, add the line; the conformance test in
# tests/apps/test_stages.py picks it up from here; its Balsam application is a class in apps/definitions.py.
STAGES: dict[str, str] = {
    "phantom": "apps.phantom.stage",
    "montage": "apps.montage.stage",
    "alignment": "apps.alignment.stage",
    "masking": "apps.masking.stage",
    "audit": "apps.audit.stage",
    "ingest": "apps.ingest.stage",
    "partition": "apps.partition.stage",
    "training": "apps.training.stage",
    "inference": "apps.inference.stage",
    "consensus": "apps.consensus.stage",
    "trial": "apps.trial.stage",
    "reconciliation": "apps.reconciliation.stage",
    "agglomeration": "apps.agglomeration.stage",
    "connectome": "apps.connectome.stage",
    "synapses": "apps.synapses.stage",
    "evaluation": "apps.evaluation.stage",
    "interchange": "apps.interchange.stage",
    "multiscale": "apps.multiscale.stage",
    "meshes": "apps.meshes.stage",
    "skeletons": "apps.skeletons.stage",
    "precomputed": "apps.precomputed.stage",
    "simulation": "apps.simulation.stage",
}


@dataclass(frozen=True)
class Stage(Generic[P, R]):
    """One pipeline stage.

    Attributes:
        name: the key in `STAGES`, the word after `python -m apps.`.
        summary: one line for `--help` and `balsam app ls`.
        parameters, result: its types.
        run: does the work; raises UserError, DivergedError or lets bugs pass.
        example: parameters shown in `--help` (must be valid; tested).
        several_ranks: whether it shares its work between the ranks of one launch; another stage is refused there, as
            every rank would do the whole of it in the same place.
        check_installed: raises StateError where a library is missing that is not installed unasked; pipelines call it
            before they make any job.
        output_suffix: how the name of its `output` has to end, for those who choose one.
        stands: whether what a result (plain JSON) tells of is still there, where the stage writes into an input, which
            may be made anew without it; whoever finds the stage done asks, and has it done again where it is not.
        phases: how several jobs do it, one phase after the other (see apps/core/parts.py); empty: it is one job's work.
    """

    name: str
    summary: str
    parameters: type[P]
    result: type[R]
    run: Callable[[P, Reporter], R]
    example: dict[str, Any]
    several_ranks: bool = False
    check_installed: Callable[[], None] = lambda: None
    output_suffix: str = ""
    stands: Callable[[dict[str, Any]], bool] = lambda result: True
    phases: tuple[Phase, ...] = ()


class Cost(Result, frozen=True, kw_only=True):
    """What one run of a stage cost, from the process's own clocks.

    start, end: UTC epoch seconds, the start being that of the process (imports are part of the cost).
    peak_memory_bytes: largest resident set of the process or of one of its children.
    """

    start: float
    end: float
    cpu_seconds: float
    peak_memory_bytes: int
    host: str

    @property
    def wall_seconds(self) -> float:
        return self.end - self.start


def load_stage(name: str) -> Stage[Any, Any]:
    """The stage of that name.  Raises DataError with the known names otherwise."""
    if name not in STAGES:
        raise DataError(f"{name!r}: no such stage{did_you_mean(name, STAGES)}; expected one of {', '.join(STAGES)}")
    stage: Stage[Any, Any] = importlib.import_module(STAGES[name]).STAGE
    return stage


def code_version() -> str:
    """Version of the installed project."""
    from importlib.metadata import version

    return version("ensemble")


def process_start() -> float:
    """When this process was started, in UTC epoch seconds.

    psutil counts from a boot time that the kernel gives in whole seconds, so its answer can be a second too early.
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # not Linux
        import psutil

        return psutil.Process().create_time()
    return time.time() - age


def measure_cost() -> Cost:
    """What this process has cost so far."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(
        start=process_start(),
        end=time.time(),
        cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        peak_memory_bytes=max(own.ru_maxrss, children.ru_maxrss) * 1024,
        host=platform.node(),
    )


def run_file(stage: Stage[P, R], parameters_file: Path, launch: Launch = ONE_RANK) -> R:
    """Run `stage` on a parameters file and write `result.json` beside it (or `failure.json`, and raise).

    Of several ranks each returns its result, or raises, and rank 0 writes the file.
    """
    folder = parameters_file.parent
    try:
        parameters = stage.parameters.load(parameters_file)
        if launch.size > 1 and not stage.several_ranks:
            raise ParameterError(
                f"{stage.name}: {launch.launcher} started {launch.size} ranks, and this stage is the work of one; "
                "start one"
            )
        if launch.rank == 0:
            _remove_failure(folder, launch)
            (folder / RESULT_FILE).unlink(missing_ok=True)
        with _reporter(folder, stage.name, launch) as report:
            result = stage.run(parameters, report)
    except Exception as error:
        _record_failure(folder, launch, error)
        raise
    if launch.rank == 0:
        write_json(
            folder / RESULT_FILE,
            {
                "stage": stage.name,
                "result": result.to_dict(),
                "cost": measure_cost().to_dict(),
                "ranks": launch.size,
                "code_version": code_version(),
                "configuration_hash": parameters.hash(),
            },
        )
    return result


def _reporter(folder: Path, title: str, launch: Launch) -> contextlib.AbstractContextManager[Reporter]:
    return stage_reporter(folder, title) if launch.rank == 0 else contextlib.nullcontext(silent)


def _remove_failure(folder: Path, launch: Launch) -> None:
    """Remove what an earlier run left; of several ranks, another of this run may have failed before we came here."""
    failure = folder / FAILURE_FILE
    with contextlib.suppress(FileNotFoundError):
        if launch.size == 1 or failure.stat().st_mtime < measure_cost().start:
            failure.unlink()


def _record_failure(folder: Path, launch: Launch, error: Exception) -> None:
    """Write `failure.json`; where not even that can be done, the error itself matters more."""
    with contextlib.suppress(DataError, OSError):
        _write_failure(folder, launch, error)


def _write_failure(folder: Path, launch: Launch, error: Exception) -> None:
    """Write `failure.json`; of several ranks the first that fails, the others often fail because of it."""
    failure = folder / FAILURE_FILE
    content = {"kind": kind_of(error).value, "message": f"{error}" or type(error).__name__}
    if launch.size == 1:
        write_json(failure, content)
        return
    _remove_failure(folder, launch)
    own = folder / f".{FAILURE_FILE}.{launch.rank}"
    write_json(own, content)
    with contextlib.suppress(FileExistsError):
        os.link(own, failure)  # all at once, and refused where the file is there
    own.unlink()


def stage_main(stage: Stage[Any, Any], arguments: Sequence[str] | None = None) -> int:
    """Command line of one stage; returns the exit code.  Of several ranks, one that fails ends the process, and all."""
    parser = argparse.ArgumentParser(
        prog=f"python -m apps.{stage.name}",
        description=stage.summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(stage),
    )
    parser.add_argument("parameters", nargs="?", type=Path, metavar="parameters.json", help="the stage's parameters")
    parser.add_argument("--print-schema", action="store_true", help="print the JSON schema of the parameters and stop")
    parser.add_argument(
        "--time-limit",
        type=parse_time_limit,
        metavar="SECONDS",
        help="end the process, as hung, where it takes longer (0: as long as it likes, the default)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.print_schema:
        print(json.dumps(stage.parameters.schema(), indent=2))
        return 0
    if options.parameters is None:
        parser.error("parameters.json is missing; --help shows an example of one")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    launch = ONE_RANK

    def give_up(error: EnsembleError) -> NoReturn:
        _record_failure(options.parameters.parent, launch, error)
        end_all_ranks(_explain(stage.name, error, launch, debug=False))

    try:
        launch = read_launch()
        with time_limit(options.time_limit, options.parameters.parent, give_up, launch):
            result = run_file(stage, options.parameters, launch)
    except (KeyboardInterrupt, Exception) as error:
        code = _explain(stage.name, error, launch, options.debug)
        if launch.size > 1:
            end_all_ranks(code)
        return code
    if launch.rank == 0:
        print(json.dumps(result.to_dict(), indent=2))
    return 0


def _explain(name: str, error: BaseException, launch: Launch, debug: bool) -> int:
    """Say on standard error what went wrong; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_CODE_OF_INTERRUPT
    if debug or not isinstance(error, EnsembleError):
        traceback.print_exception(error)
    where = f" (rank {launch.rank} of {launch.size})" if launch.size > 1 else ""
    print(f"{name}{where}: {error}", file=sys.stderr)
    if kind_of(error) is FailureKind.NO_ROOM:
        return NoRoomError.exit_code
    return error.exit_code if isinstance(error, EnsembleError) else 1


def _epilog(stage: Stage[Any, Any]) -> str:
    properties = stage.parameters.schema()["$defs"][stage.parameters.__name__]["properties"]
    lines = [f"  {name:<20} {entry.get('description', '')}" for name, entry in properties.items()]
    example = json.dumps(stage.example, indent=2)
    return (
        "fields of parameters.json (--print-schema tells types, ranges and defaults):\n"
        + "\n".join(lines)
        + f"\n\nexample parameters.json:\n{example}\n\n"
        "exit codes: 0 result.json is written; 2 wrong parameters or data; 3 the training diverged; "
        "74 a disk is full; 124 the time limit was over; 1 an error of the program"
    )
