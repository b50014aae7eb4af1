"""What a home holds: its paths, the lock, the remembered processes, and the phases of the service's life."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.core.errors import DataError, StateError
from apps.core.files import write_atomically
from apps.core.parameters import Parameters
from ensemble.service.processes import ProcessId


class Phase(enum.StrEnum):
    """Where the service of one home is in its life."""

    ABSENT = "absent"  # no service was ever started here
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"  # one of its processes, or the command that was starting or stopping it, was killed


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.ABSENT: frozenset({Phase.STARTING}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.STOPPING, Phase.CRASHED}),
    Phase.RUNNING: frozenset({Phase.STOPPING, Phase.CRASHED}),
    Phase.STOPPING: frozenset({Phase.STOPPED, Phase.CRASHED}),
    Phase.STOPPED: frozenset({Phase.STARTING}),
    Phase.CRASHED: frozenset({Phase.STARTING, Phase.STOPPING}),
}


class State(Parameters, frozen=True, kw_only=True):
    """The content of `state.json`."""

    phase: Annotated[Phase, Meta(description="phase that the last command left the service in")] = Phase.ABSENT
    port: Annotated[int | None, Meta(description="port of the API server on the loopback interface")] = None
    postgres: Annotated[ProcessId | None, Meta(description="the postmaster")] = None
    server: Annotated[ProcessId | None, Meta(description="the API server")] = None

    @property
    def observed(self) -> Phase:
        """The phase after a look at the processes; STARTING and STOPPING are taken at their word."""
        if self.phase is Phase.RUNNING and not (_alive(self.postgres) and _alive(self.server)):
            return Phase.CRASHED
        return self.phase


def _alive(process: ProcessId | None) -> bool:
    return process is not None and process.alive


class Secrets(Parameters, frozen=True, kw_only=True):
    """The content of `secrets.json`; made once per home."""

    database_password: str
    token_key: str


@dataclass(frozen=True)
class Home:
    """The state folder of one service.  Folders are 0700, files 0600."""

    path: Path

    @property
    def lock_file(self) -> Path:
        return self.path / "service.lock"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def secrets_file(self) -> Path:
        return self.path / "secrets.json"

    @property
    def client_file(self) -> Path:
        """Address and token, read by every Balsam client (`BALSAM_CLIENT_PATH`)."""
        return self.path / "client.yml"

    @property
    def database(self) -> Path:
        """PostgreSQL's data folder; its socket lies in it as well.  When root, it belongs to `nobody`."""
        return self.path / "postgres" / "data"

    @property
    def run_folder(self) -> Path:
        """Working folder of the API server, empty: Balsam would read a `.env` file from it."""
        return self.path / "run"

    @property
    def sites(self) -> Path:
        """One folder, or link to a folder, per site."""
        return self.path / "sites"

    def log(self, name: str) -> Path:
        """Log file of one component: `postgres` or `server`."""
        return self.path / "logs" / f"{name}.log"

    def make_folders(self) -> None:
        """Create what is missing.  Raises DataError where the place is not writable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            for folder in (self.database.parent, self.run_folder, self.sites, self.log("server").parent):
                folder.mkdir(exist_ok=True, mode=0o700)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise DataError(
                f"{self.path}: the service's home cannot be written ({error.strerror}); "
                "give a writable folder with --home or ENSEMBLE_HOME"
            ) from error

    def load_state(self) -> State:
        """What the last command wrote; ABSENT where there is nothing."""
        try:
            return State.load(self.state_file) if self.state_file.exists() else State()
        except PermissionError as error:
            raise StateError(f"{self.path}: belongs to another user; give a home of your own with --home") from error

    def save_state(self, state: State, phase: Phase) -> State:
        """Write `state` in its new phase; the only writer of phases.  Raises StateError on a forbidden transition."""
        if phase is not state.phase and phase not in TRANSITIONS[state.phase]:
            raise StateError(f"the service in {self.path} cannot go from {state.phase} to {phase}")
        new = State(phase=phase, port=state.port, postgres=state.postgres, server=state.server)
        write_private(self.state_file, new)
        return new

    def load_secrets(self) -> Secrets:
        """The home's secrets; random ones are made on the first call."""
        if not self.secrets_file.exists():
            made = Secrets(database_password=secrets.token_urlsafe(24), token_key=secrets.token_hex(32))
            write_private(self.secrets_file, made)
        return Secrets.load(self.secrets_file)

    @contextlib.contextmanager
    def lock(self, patience_s: float = 60.0) -> Iterator[None]:
        """Hold the home's lock: one command at a time starts or stops.  The kernel frees it when the holder dies."""
        with file_lock(self.lock_file, patience_s, f"the service in {self.path}"):
            yield

    def locked(self) -> bool:
        """True while another command is starting or stopping the service."""
        try:
            with file_lock(self.lock_file, 0.0, ""):
                return False
        except StateError:
            return True


@contextlib.contextmanager
def file_lock(path: Path, patience_s: float, what: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`.  Raises StateError where another process keeps it too long."""
    deadline = time.monotonic() + patience_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StateError(
                        f"{what} is being started or stopped by another command; try again later"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, content: Parameters) -> None:
    """Write JSON that only the owner may read."""
    import json

    write_atomically(path, (json.dumps(content.to_dict(), indent=2) + "\n").encode(), mode=0o600)
