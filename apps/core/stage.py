"""The stage contract, and the one main that every `python -m apps.<stage> parameters.json` runs.

A stage is a function of one `Parameters` object that returns one `Result`.  Its main writes `result.json` beside the
parameters, atomically and last: exit code 0 means that it is there.  A failure writes `failure.json` (kind, message).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from apps.core.errors import EXIT_CODE_OF_INTERRUPT, DataError, EnsembleError, FailureKind
from apps.core.parameters import Parameters, Result, write_json
from apps.core.progress import Reporter, stage_reporter

P = TypeVar("P", bound=Parameters)
R = TypeVar("R", bound=Result)

RESULT_FILE = "result.json"
FAILURE_FILE = "failure.json"

# Stage name -> module that holds its `STAGE`.  To add a stage: write the module, add the line; the conformance test in
# tests/apps/test_stages.py picks it up from here; its Balsam application is a class in apps/definitions.py.
STAGES: dict[str, str] = {
    "phantom": "apps.phantom.stage",
    "ingest": "apps.ingest.stage",
    "partition": "apps.partition.stage",
    "training": "apps.training.stage",
    "inference": "apps.inference.stage",
    "trial": "apps.trial.stage",
    "reconciliation": "apps.reconciliation.stage",
    "evaluation": "apps.evaluation.stage",
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
    """

    name: str
    summary: str
    parameters: type[P]
    result: type[R]
    run: Callable[[P, Reporter], R]
    example: dict[str, Any]


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
        raise DataError(f"{name!r}: no such stage; expected one of {', '.join(STAGES)}")
    stage: Stage[Any, Any] = importlib.import_module(STAGES[name]).STAGE
    return stage


def code_version() -> str:
    """Version of the installed project."""
    from importlib.metadata import version

    return version("ensemble")


def measure_cost() -> Cost:
    """What this process has cost so far."""
    import psutil

    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(
        start=psutil.Process().create_time(),
        end=time.time(),
        cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        peak_memory_bytes=max(own.ru_maxrss, children.ru_maxrss) * 1024,
        host=platform.node(),
    )


def run_file(stage: Stage[P, R], parameters_file: Path) -> R:
    """Run `stage` on a parameters file and write `result.json` beside it (or `failure.json`, and raise)."""
    folder = parameters_file.parent
    failure = folder / FAILURE_FILE
    try:
        parameters = stage.parameters.load(parameters_file)
        failure.unlink(missing_ok=True)
        (folder / RESULT_FILE).unlink(missing_ok=True)
        with stage_reporter(folder, stage.name) as report:
            result = stage.run(parameters, report)
    except Exception as error:
        kind = error.kind if isinstance(error, EnsembleError) else FailureKind.BUG
        # Where not even this can be written, the error itself matters more.
        with contextlib.suppress(DataError):
            write_json(failure, {"kind": kind.value, "message": f"{error}" or type(error).__name__})
        raise
    write_json(
        folder / RESULT_FILE,
        {
            "stage": stage.name,
            "result": result.to_dict(),
            "cost": measure_cost().to_dict(),
            "code_version": code_version(),
            "configuration_hash": parameters.hash(),
        },
    )
    return result


def stage_main(stage: Stage[Any, Any], arguments: Sequence[str] | None = None) -> int:
    """Command line of one stage; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m apps.{stage.name}",
        description=stage.summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(stage),
    )
    parser.add_argument("parameters", nargs="?", type=Path, metavar="parameters.json", help="the stage's parameters")
    parser.add_argument("--print-schema", action="store_true", help="print the JSON schema of the parameters and stop")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if options.print_schema:
        print(json.dumps(stage.parameters.schema(), indent=2))
        return 0
    if options.parameters is None:
        parser.error("parameters.json is missing; --help shows an example of one")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        result = run_file(stage, options.parameters)
    except KeyboardInterrupt:
        return EXIT_CODE_OF_INTERRUPT
    except Exception as error:
        if options.debug or not isinstance(error, EnsembleError):
            traceback.print_exc()
        print(f"{stage.name}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, EnsembleError) else 1
    print(json.dumps(result.to_dict(), indent=2))
    return 0


def _epilog(stage: Stage[Any, Any]) -> str:
    properties = stage.parameters.schema()["$defs"][stage.parameters.__name__]["properties"]
    lines = [f"  {name:<20} {entry.get('description', '')}" for name, entry in properties.items()]
    example = json.dumps(stage.example, indent=2)
    return (
        "fields of parameters.json (--print-schema tells types, ranges and defaults):\n"
        + "\n".join(lines)
        + f"\n\nexample parameters.json:\n{example}\n\n"
        "exit codes: 0 result.json is written; 2 wrong parameters or data; 3 the training diverged; "
        "1 an error of the program"
    )
