"""Start, stop and look at the service of a home: PostgreSQL below, the Balsam server above it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apps.core.errors import StateError
from ensemble.service import server
from ensemble.service.postgres import Postgres, check_disk_space
from ensemble.service.state import Home, Phase, State


@dataclass(frozen=True)
class ServiceInfo:
    """A running service.

    Attributes:
        api_root: address of the Balsam server, on the loopback interface.
        port: its port.
        client_file: file with address and token, for `BALSAM_CLIENT_PATH`.
        started: True where this call started it, False where it was running.
    """

    api_root: str
    port: int
    client_file: Path
    started: bool


@dataclass(frozen=True)
class ServiceStatus:
    """What a look at a home shows; pids are those of living processes."""

    home: Path
    phase: Phase
    api_root: str | None
    postgres_pid: int | None
    server_pid: int | None


def start(home: Path) -> ServiceInfo:
    """Start the service in `home` (made where missing); a running one is left alone.

    What a crash left behind (a stale pid, a half-made database, one dead process of the two, a port that another
    program has taken since) is cleared up first.  Raises DataError where the home is not writable or its disk is full,
    StateError where a component does not start; nothing runs then.
    """
    place = Home(home.absolute())
    if not place.path.exists():
        check_disk_space(place.path)
    place.make_folders()
    with place.lock():
        state = place.load_state()
        if state.observed is Phase.RUNNING and server.answers(place):
            return _info(place, state, started=False)
        if state.phase not in (Phase.ABSENT, Phase.STOPPED):
            _end_processes(place, state)
            state = place.save_state(state, Phase.CRASHED)
        state = place.save_state(State(phase=state.phase, port=state.port), Phase.STARTING)
        try:
            state = _start_components(place, state)
        except BaseException:
            _end_processes(place, place.load_state())
            stopping = place.save_state(State(phase=state.phase, port=state.port), Phase.STOPPING)
            place.save_state(stopping, Phase.STOPPED)
            raise
        return _info(place, state, started=True)


def stop(home: Path) -> bool:
    """Stop the agents and launchers of the home's sites, then the service; True where anything was running.

    Raises StateError where there is no service in `home`.
    """
    place = Home(home.absolute())
    if place.load_state().phase is Phase.ABSENT:
        raise StateError(f"{home}: there is no service here; give its folder with --home or ENSEMBLE_HOME")
    with place.lock():
        state = place.load_state()
        ended_sites = _stop_sites(place)
        if state.phase is Phase.STOPPED:
            return ended_sites
        state = place.save_state(state, Phase.STOPPING)
        _end_processes(place, state)
        place.save_state(State(phase=state.phase, port=state.port), Phase.STOPPED)
    return True


def status(home: Path) -> ServiceStatus:
    """What is in `home` and what of it lives."""
    place = Home(home.absolute())
    state = place.load_state()
    phase = state.observed
    if phase in (Phase.STARTING, Phase.STOPPING) and not place.locked():
        phase = Phase.CRASHED
    return ServiceStatus(
        home=place.path,
        phase=phase,
        api_root=_api_root(state) if phase is Phase.RUNNING else None,
        postgres_pid=state.postgres.pid if state.postgres and state.postgres.alive else None,
        server_pid=state.server.pid if state.server and state.server.alive else None,
    )


def _start_components(place: Home, state: State) -> State:
    """Bring up one component after the other, remembering each as soon as it lives."""
    postgres = Postgres(place)
    if not postgres.initialised:
        postgres.initialise()
    else:
        check_disk_space(place.path)
    state = State(phase=state.phase, port=state.port, postgres=postgres.start())
    place.save_state(state, Phase.STARTING)
    with server.bind(state.port) as listener:
        port = listener.getsockname()[1]
        process = server.start(place, listener)
    return place.save_state(State(phase=state.phase, port=port, postgres=state.postgres, server=process), Phase.RUNNING)


def _end_processes(place: Home, state: State) -> None:
    server.stop(place, state.server)
    Postgres(place).stop(state.postgres)


def _stop_sites(place: Home) -> bool:
    if not any(place.sites.glob("*/.balsam-site")):
        return False
    from ensemble.sites import processes

    ended = [processes.end_all(marker.parent.resolve()) for marker in place.sites.glob("*/.balsam-site")]
    return any(ended)


def _api_root(state: State) -> str:
    return f"http://127.0.0.1:{state.port}"


def _info(place: Home, state: State, started: bool) -> ServiceInfo:
    assert state.port is not None
    return ServiceInfo(_api_root(state), state.port, place.client_file, started)
