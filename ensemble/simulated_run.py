"""How the launcher of a simulated site runs jobs: it keeps their clocks, and starts no process.

The `sites/simulated` template names `SimulatedRun` as the launcher's way to start a job.  It takes the command line and
the work directory that any job of the stage `simulation` has, and leaves there what `python -m apps.simulation` would:
`result.json`, or `failure.json`, or nothing where the machine is to have killed it.  So thousands of virtual nodes are
busy for real seconds at no cost but that of Balsam itself.
"""

from __future__ import annotations

import json
import platform
import shlex
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from balsam.platform.app_run.app_run import AppRun

from apps.core.errors import DataError, EnsembleError, HungError, ParameterError
from apps.core.stage import FAILURE_FILE, RESULT_FILE, code_version
from apps.core.time_limit import parse_time_limit
from apps.simulation.stage import STAGE, SimulationParameters, conclude, duration, fate_of_this_start
from ensemble.settings import current_site
from ensemble.simulation.clocks import ClockFile, Span

MODULE = f"apps.{STAGE.name}"
KILLED, TERMINATED = -9, -15


@dataclass(frozen=True)
class Command:
    """What the command line of a job of the stage `simulation` says."""

    parameters: Path
    time_limit_s: float | None

    @classmethod
    @cache
    def parse(cls, line: str) -> Command:
        """Raises ParameterError for the command of another stage: a simulated site runs none."""
        words = shlex.split(line)
        if MODULE not in words:
            raise ParameterError(f"{line!r}: a simulated site runs jobs of the stage {STAGE.name} alone")
        rest = words[words.index(MODULE) + 1 :]
        limit = None
        if "--time-limit" in rest:
            at = rest.index("--time-limit")
            limit = parse_time_limit(rest[at + 1])
            del rest[at : at + 2]
        return cls(Path(rest[0]), limit)


class SimulatedRun(AppRun):
    """A job that is but a clock: it ends when its simulated seconds are over, in the first `poll` after that.

    `result.json` says the simulated start and end, not when they were noticed.
    """

    def start(self) -> None:
        self._began, self._clock = time.time(), time.monotonic()
        self._code: int | None = None
        self._limit: float | None = None
        self._due = 0.0
        self._envs: dict[str, str] = {}  # of no use here, and thousands of them take room
        try:
            command = Command.parse(self._cmdline)
            file = self._cwd / command.parameters
            self._folder = file.parent
            self._parameters = SimulationParameters.from_json(file.read_bytes(), where=str(file))
            self._fate = fate_of_this_start(self._parameters)
        except OSError as error:
            self._refuse(DataError(f"{error.filename}: cannot be read ({error.strerror})"))
            return
        except EnsembleError as error:
            self._refuse(error)
            return
        self._due = duration(self._parameters, self._fate)
        if command.time_limit_s is not None and command.time_limit_s < self._due:
            self._limit = self._due = command.time_limit_s
        self._note_clock(self._due)

    def poll(self) -> int | None:
        if self._code is None and time.monotonic() - self._clock >= self._due:
            self._end()
        return self._code

    def terminate(self) -> None:
        if self._code is None:
            self._code = TERMINATED
            self._note_clock(time.monotonic() - self._clock)

    def kill(self) -> None:
        self.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; one that still runs is ended, for its launcher waits for it only to be gone."""
        self.terminate()
        assert self._code is not None
        return self._code

    def tail_output(self, nlines: int = 10) -> str:
        return "a simulated job has no output"

    def _end(self) -> None:
        if self._limit is not None:
            self._fail(HungError(f"simulated: ran longer than its time limit of {self._limit:g} s and was ended"))
            return
        if self._fate == "killed":
            self._code = KILLED
            return
        try:
            result = conclude(self._parameters, self._fate)
        except EnsembleError as error:
            self._fail(error)
            return
        self._write(
            RESULT_FILE,
            {
                "stage": STAGE.name,
                "result": result.to_dict(),
                "cost": {
                    "start": self._began,
                    "end": self._began + self._due,
                    "cpu_seconds": 0.0,
                    "peak_memory_bytes": 0,
                    "host": _host(),
                },
                "ranks": self.get_num_ranks(),
                "code_version": _version(),
                "configuration_hash": self._parameters.hash(),
            },
        )
        self._code = 0

    def _note_clock(self, seconds: float) -> None:
        nodes, hung = len(self._node_spec.node_ids), self._limit is not None
        _clocks().append(Span(str(self._cwd), nodes, self._began, self._began + seconds, hung))

    def _refuse(self, error: EnsembleError) -> None:
        self._folder = self._cwd
        self._fail(error)

    def _fail(self, error: EnsembleError) -> None:
        self._write(FAILURE_FILE, {"kind": error.kind.value, "message": str(error)})
        self._code = error.exit_code

    def _write(self, name: str, content: dict[str, Any]) -> None:
        # Nobody reads it before this process says that the job has ended, and it need not outlive a power cut.
        (self._folder / name).write_text(json.dumps(content))


@cache
def _clocks() -> ClockFile:
    return ClockFile.of_site(current_site())


@cache
def _host() -> str:
    return platform.node()


@cache
def _version() -> str:
    return code_version()
