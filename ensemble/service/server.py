"""How the Balsam API server of one home is started and ended; `serve` is the process itself.

The command that starts it binds the port and hands the open socket over: no other process can take the port in between,
and a request that comes early waits in the socket's queue instead of failing.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import psutil

from apps.core.errors import StateError
from ensemble.service.postgres import last_log_line, open_log
from ensemble.service.processes import ProcessId, end, wait_until
from ensemble.service.state import Home
from ensemble.settings import inherited_environment

MODULE = "ensemble.service.serve"
START_PATIENCE_S = 120.0


def bind(port: int | None) -> socket.socket:
    """Listen on `port` of the loopback interface, or on a random free one where it is None or taken."""
    for wish in (port, 0) if port else (0,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", wish or 0))
            listener.listen(512)
        except OSError:
            listener.close()
            continue
        return listener
    raise StateError("no free port on the loopback interface 127.0.0.1; is networking set up?")


def start(home: Home, listener: socket.socket) -> ProcessId:
    """Start the server on the bound socket and wait until it answers with our token.  Raises StateError otherwise."""
    home.client_file.unlink(missing_ok=True)
    with open_log(home.log("server")) as log:
        process = subprocess.Popen(
            # -P: nothing is imported from the working folder.  No standard output: Balsam prints a line per request.
            [sys.executable, "-P", "-m", MODULE, str(home.path), str(listener.fileno())],
            cwd=home.run_folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            env=_environment(),
        )
    identity = ProcessId.of(process.pid)
    wait_until(lambda: process.poll() is not None or home.client_file.exists(), START_PATIENCE_S)
    if process.poll() is not None or not answers(home):
        slow = process.poll() is None
        stop(home, identity)
        what = f"did not answer within {START_PATIENCE_S:.0f} s; is the machine busy? try again" if slow else "ended"
        raise StateError(
            f"the Balsam server did not start: it {what} ({last_log_line(home.log('server'))}; {home.log('server')})"
        )
    process.returncode = 0  # it is not ours to wait for; without this Python warns of a process that still runs
    return identity


def stop(home: Home, server: ProcessId | None) -> None:
    """End the server of this home, and one that a killed `start` had no time to write down."""
    process = server.find() if server else None
    found = [process] if process else []
    for other in psutil.process_iter(["cmdline"]):
        words = other.info["cmdline"] or []
        if MODULE in words and str(home.path) in words and other not in found:
            found.append(other)
    end(found, [(signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)])


def answers(home: Home, patience_s: float = 20.0) -> bool:
    """True where the server of this home answers a request that carries our token."""
    import requests
    import yaml

    try:
        client = yaml.safe_load(home.client_file.read_text())
        headers = {"Authorization": f"Bearer {client['token']}"}
        return requests.get(f"{client['api_root']}/sites/", headers=headers, timeout=patience_s).ok
    except (requests.RequestException, OSError, yaml.YAMLError, KeyError, TypeError):
        return False


def _environment() -> dict[str, str]:
    """Our environment without variables that would reconfigure Balsam's server."""
    return {name: value for name, value in inherited_environment().items() if not name.startswith("BALSAM_")}
