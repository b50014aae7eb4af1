"""The embedded service for real: PostgreSQL and the Balsam server started, killed, recovered and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from apps.core.errors import StateError
from ensemble import service
from ensemble.service import Phase
from ensemble.service.client import open_client
from ensemble.service.postgres import Postgres
from ensemble.service.processes import ProcessId
from ensemble.service.state import Home, State

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home deeper than a Unix socket's path may be long, with a service that ran at least once."""
    path = tmp_path_factory.mktemp("deep") / ("d" * 60) / ("e" * 60) / "home"
    try:
        service.start(path)
        yield path
    finally:
        service.stop(path)
        assert _processes_of(path) == []


def _processes_of(home: Path) -> list[str]:
    """Command lines of living processes that name the home or work inside it."""
    found = []
    for process in psutil.process_iter():
        try:
            words, folder = process.cmdline(), process.cwd()
        except psutil.Error:
            continue
        if process.pid != os.getpid() and (str(home) in " ".join(words) or folder.startswith(str(home))):
            found.append(" ".join(words))
    return found


def _sites(home: Path) -> list[str]:
    client = open_client(Home(home).client_file)
    return [site.name for site in client.Site.objects.all()]


def test_second_start_is_a_no_op(home: Path) -> None:
    first = service.start(home)
    before = service.status(home)
    again = service.start(home)
    assert not again.started
    assert (again.api_root, again.port) == (first.api_root, first.port)
    assert service.status(home) == before


def test_concurrent_starts_make_one_service(tmp_path: Path) -> None:
    target = tmp_path / "home"
    code = (
        f"from pathlib import Path; from ensemble import service; print(service.start(Path({str(target)!r})).started)"
    )
    starts = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        outputs = [start.communicate(timeout=60)[0].strip() for start in starts]
        assert sorted(outputs) == ["False", "False", "True"]
    finally:
        service.stop(target)
    assert _processes_of(target) == []


def test_everything_is_private(home: Path) -> None:
    service.start(home)
    open_to_others = [path for path in home.rglob("*") if path.lstat().st_mode & 0o077 and not path.is_symlink()]
    # PostgreSQL's own modes inside its 0700 folder are its own matter (the socket's, its lock file's).
    assert [path for path in open_to_others if Home(home).database not in path.parents] == []
    assert Home(home).database.stat().st_mode & 0o077 == 0
    state = Home(home).load_state()
    assert state.server is not None
    password = Home(home).load_secrets().database_password
    for identity in (state.server, state.postgres):
        assert identity is not None
        assert password not in " ".join(psutil.Process(identity.pid).cmdline())
    assert password not in "".join(path.read_text() for path in Home(home).log("server").parent.iterdir())


def test_only_the_loopback_interface_is_served(home: Path) -> None:
    service.start(home)
    state = Home(home).load_state()
    assert state.server is not None and state.postgres is not None
    listening = [c.laddr.ip for c in psutil.Process(state.server.pid).connections("inet") if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]
    assert psutil.Process(state.postgres.pid).connections("inet") == []


def test_nobody_registers_and_nobody_comes_in_without_a_token(home: Path) -> None:
    root = service.start(home).api_root
    form = {"username": "eve", "password": "eve"}
    assert requests.post(f"{root}/auth/password/register", json=form, timeout=5).status_code == 404
    assert requests.get(f"{root}/sites/", timeout=5).status_code == 401


def test_a_wrong_token_is_told_at_once(home: Path, tmp_path: Path) -> None:
    service.start(home)
    content = yaml.safe_load(Home(home).client_file.read_text())
    (tmp_path / "client.yml").write_text(yaml.safe_dump({**content, "token": "wrong"}))
    begin = time.monotonic()
    with pytest.raises(StateError, match="refuses the token"):
        list(open_client(tmp_path / "client.yml").Site.objects.all())
    assert time.monotonic() - begin < 2.0


def test_the_stock_client_file_is_never_touched(home: Path, tmp_path: Path) -> None:
    service.start(home)
    environment = {**os.environ, **service.environment(home), "HOME": str(tmp_path)}
    done = subprocess.run(["balsam", "site", "ls"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ID")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("component", ["postgres", "server"])
def test_a_killed_component_is_seen_and_replaced(home: Path, component: str) -> None:
    service.start(home)
    client = open_client(Home(home).client_file)
    client.Site.objects.create(name=f"kept-{component}", path=f"/kept/{component}")
    identity: ProcessId = getattr(Home(home).load_state(), component)
    # synchronous_commit is off: let the writer pass before PostgreSQL is killed.
    time.sleep(0.7)
    os.kill(identity.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(identity.pid)] if psutil.pid_exists(identity.pid) else [], timeout=5)
    assert service.status(home).phase is Phase.CRASHED
    with pytest.raises(StateError, match="crashed"):
        service.connect(home)
    assert service.start(home).started
    assert f"kept-{component}" in _sites(home)


def test_stale_pids_of_strangers_are_left_alone(home: Path) -> None:
    service.stop(home)
    place = Home(home)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        stale = ProcessId(pid=stranger.pid, started="another boot/1")
        for phase in (Phase.STARTING, Phase.RUNNING):
            place.save_state(State(phase=place.load_state().phase, postgres=stale, server=stale, port=1), phase)
        lock_file = place.database / "postmaster.pid"
        lock_file.write_text(f"{stranger.pid}\n/proc/self/cwd\n0\n5432\n.\n\n0 0\n")
        assert service.status(home).phase is Phase.CRASHED
        assert service.start(home).started
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_port_that_was_taken_meanwhile_is_changed(home: Path) -> None:
    port = service.start(home).port
    service.stop(home)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        info = service.start(home)
        assert info.port != port
        assert _sites(home) is not None


def test_a_killed_start_is_finished_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "home"
    code = f"from pathlib import Path; from ensemble import service; service.start(Path({str(target)!r}))"
    try:
        for delay_s in (0.3, 0.9, 1.6):
            start = subprocess.Popen([sys.executable, "-c", code])
            time.sleep(delay_s)
            start.kill()
            start.wait()
        service.start(target)
        assert service.status(target).phase is Phase.RUNNING
        assert sum("ensemble.service.serve" in line for line in _processes_of(target)) == 1
    finally:
        service.stop(target)
    assert _processes_of(target) == []


def test_a_broken_database_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    target = tmp_path / "home"
    service.start(target)
    service.stop(target)
    configuration = Home(target).database / "postgresql.conf"
    configuration.write_text(configuration.read_text() + "\nno_such_setting = 1\n")
    with pytest.raises(StateError, match=r"PostgreSQL did not start.*postgres\.log"):
        service.start(target)
    assert service.status(target).phase is Phase.STOPPED
    assert _processes_of(target) == []


def test_a_half_made_database_is_made_anew(tmp_path: Path) -> None:
    target = tmp_path / "home"
    place = Home(target)
    place.make_folders()
    (place.database.parent / "data.partial").mkdir()
    (place.database.parent / "data.partial" / "PG_VERSION").write_text("18")
    try:
        assert service.start(target).started
        assert Postgres(place).initialised
        assert sorted(path.name for path in place.database.parent.iterdir()) == ["data"]
    finally:
        service.stop(target)


def test_stop_twice(home: Path) -> None:
    service.start(home)
    assert service.stop(home)
    assert not service.stop(home)
    assert service.status(home).phase is Phase.STOPPED
    assert _processes_of(home) == []
