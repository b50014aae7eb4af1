"""Stage `simulation`: a job that takes time and a fate instead of doing anything.

It stands in for a trial where a search, a site or a schedule is to be tried out before nodes are spent on it.  Run as a
command it sleeps; on a simulated site (ensemble.simulated_run) the launcher keeps its clock and no process is started.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.errors import DataError, DivergedError, ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage

STARTS_FILE = "starts"
# A job that hangs does nothing for longer than any allocation lasts; its time limit ends it.
HANGING_S = 7 * 24 * 3600.0
# Seconds between two reports of progress.
TICK_S = 0.5


Fate = Literal["ok", "bad_configuration", "diverged", "killed", "hang"]
"""How a simulated job ends.

ok: with its objectives, after its seconds.  bad_configuration: refused at once.  diverged: after its seconds.
killed: the machine ends it after its seconds, in each of its first `lost_starts` starts.  hang: never.
"""


class SimulationParameters(Parameters, frozen=True, kw_only=True):
    """How long a simulated job takes, how it ends and what it gives."""

    seconds: Annotated[float, Meta(ge=0, description="how long it runs")]
    objectives: Annotated[tuple[float, ...], Meta(description="the numbers that it gives")] = ()
    fate: Annotated[Fate, Meta(description="how it ends")] = "ok"
    lost_starts: Annotated[int, Meta(ge=1, description="fate killed: so many starts are lost, the next one is ok")] = 1
    output: Annotated[str | None, Meta(description="fate killed: the folder where its starts are counted")] = None

    def check(self) -> None:
        if self.fate == "killed" and not self.output:
            raise ParameterError("fate killed: expected an output folder, where the starts are counted")


class SimulationResult(Result, frozen=True, kw_only=True):
    """What a simulated job gives: its `objectives`, and the `seconds` that it was to run."""

    objectives: tuple[float, ...]
    seconds: float


def fate_of_this_start(parameters: SimulationParameters) -> Fate:
    """What happens to the job in this start, which is counted: one that was lost often enough is ok."""
    if parameters.fate != "killed":
        return parameters.fate
    file = Path(str(parameters.output)) / STARTS_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            stream.write(b".")
        starts = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror}); give a writable output folder") from error
    return "killed" if starts <= parameters.lost_starts else "ok"


def duration(parameters: SimulationParameters, fate: Fate) -> float:
    """Seconds until that fate comes."""
    return {"bad_configuration": 0.0, "hang": HANGING_S}.get(fate, parameters.seconds)


def conclude(parameters: SimulationParameters, fate: Fate) -> SimulationResult:
    """The end of a job whose time is over: its result, or the error of its fate."""
    if fate == "bad_configuration":
        raise ParameterError("simulated: this configuration cannot work")
    if fate == "diverged":
        raise DivergedError("simulated: the training diverged")
    return SimulationResult(objectives=parameters.objectives, seconds=parameters.seconds)


def run(parameters: SimulationParameters, report: Reporter) -> SimulationResult:
    """Sleep, and end as the parameters say.

    Raises ParameterError and DivergedError as simulated failures, DataError where the starts cannot be counted.
    """
    fate = fate_of_this_start(parameters)
    seconds = duration(parameters, fate)
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        report(passed, seconds)
        time.sleep(min(TICK_S, seconds - passed))
    if fate == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    report(seconds, seconds)
    return conclude(parameters, fate)


STAGE = Stage(
    name="simulation",
    summary="A job that takes time and a fate instead of doing anything, for trying out searches and sites.",
    parameters=SimulationParameters,
    result=SimulationResult,
    run=run,
    example={"seconds": 10.0, "objectives": [0.5]},
)
