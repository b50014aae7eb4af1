"""A campaign's jobs with everything they need running, and nothing left running that the user did not start."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from apps.core.errors import ParameterError, StateError
from apps.core.parameters import write_json
from ensemble import service, sites
from ensemble.campaigns import Campaign
from ensemble.jobs import CampaignJobs
from ensemble.sites.processes import end_all

log = logging.getLogger(__name__)

STARTED_FILE = "started.json"
SESSIONS_LOCK = "sessions.lock"
# Says that something is begun, and when left that it is done.
Tell = Callable[[str], contextlib.AbstractContextManager[object]]
# A launcher ends at its walltime and when it has been idle for long: how often to look whether a new one is needed.
LAUNCHER_CHECK_S = 20.0


def check_site(home: Path, site_name: str, nodes: int) -> None:
    """Raise StateError or ParameterError where a session at this site could not begin, before anything is made."""
    if service.status(home).phase is not service.Phase.RUNNING:
        raise StateError(f"the service in {home} does not run; start it: ensemble service start --home {home}")
    site = sites.open_site(home, site_name)
    if not 1 <= nodes <= site.nodes:
        raise ParameterError(f"workers = {nodes}: site {site.name!r} has 1 to {site.nodes} nodes")


@contextlib.contextmanager
def open_session(
    home: Path,
    campaign: Campaign,
    site_name: str,
    nodes: int,
    wall_time_min: int,
    *,
    create_with_nodes: int | None = None,
    keep_service: bool = False,
    held: bool = False,
    nodes_of_others: Callable[[], int] = lambda: 0,
    tell: Tell = lambda what: contextlib.nullcontext(),
) -> Iterator[CampaignJobs]:
    """The campaign's jobs at a site, with the service, the site's agent and a launcher of `nodes` nodes running.

    What was not running is started, and stopped at the end, however that comes; what ran goes on.  A note in the home
    says what sessions have started, so that the last one to end stops it: also what a killed one had to leave, and not
    what another still uses.  Jobs that a stopped launcher was running are found again by the next session.
    `create_with_nodes`: start the service, and make the site with so many nodes, where they are missing; without it
    that is a StateError.  `keep_service`: leave the service running all the same.  `held`: the caller holds the
    campaign already, alone or with other drivers; those count on `nodes_of_others` at the site, and launchers are asked
    for until there are nodes for all.  `tell`: is told of what is started or stopped, as it takes seconds.
    """
    if create_with_nodes is None:
        check_site(home, site_name, nodes)
    with contextlib.ExitStack() as stack:
        if not held:
            stack.enter_context(campaign.driver_lock())
        ours = stack.enter_context(_started(home, keep_service, tell))
        phase = service.status(home).phase
        running = phase is service.Phase.RUNNING
        ours.note("service", running)
        new = "making a database, and " if phase is service.Phase.ABSENT else ""
        with contextlib.nullcontext() if running else tell(f"{new}starting PostgreSQL and the Balsam server"):
            service.start(home)
        service.connect(home)
        if create_with_nodes is None:
            site = sites.open_site(home, site_name)
        else:
            site = sites.create_site(home, site_name, nodes=create_with_nodes)
        running = sites.agent_running(site)
        ours.note(f"agent {site.name}", running)
        with contextlib.nullcontext() if running else tell(f"starting the agent of site {site.name}"):
            sites.start_agent(site)
        with tell(f"registering the stages at site {site.name}"):
            app_ids = sites.register_stages(site)
        ours.note(f"launcher {site.name}", sites.has_launcher(site))
        with contextlib.nullcontext() if sites.has_launcher(site) else tell(f"asking for a launcher of {nodes} nodes"):
            stack.enter_context(_kept_running(home, site, nodes, wall_time_min, nodes_of_others))
        yield stack.enter_context(CampaignJobs(campaign, app_ids, site.path / "data"))


@contextlib.contextmanager
def _kept_running(
    home: Path, site: sites.Site, nodes: int, wall_time_min: int, nodes_of_others: Callable[[], int]
) -> Iterator[None]:
    """See to it that agent and launcher run, now and whenever one has ended: a launcher's walltime is shorter than
    a search.  A service that has crashed is started again; one that the user stopped is not."""

    def look() -> None:
        if service.status(home).phase is service.Phase.CRASHED:
            log.warning("the service has crashed and is started again home=%s", home)
            service.start(home)
        sites.start_agent(site)  # does nothing where it runs
        missing = _missing_nodes(site, nodes, nodes_of_others())
        if missing:
            log.info("asking for a launcher site=%s nodes=%d", site.name, missing)
            sites.submit_batch_job(site, missing, wall_time_min)

    look()
    done = threading.Event()

    def look_after() -> None:
        while not done.wait(LAUNCHER_CHECK_S):
            try:
                look()
            except Exception as error:
                log.warning("agent or launcher could not be started site=%s error=%s", site.name, error)

    thread = threading.Thread(target=look_after, name="launcher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _missing_nodes(site: sites.Site, nodes: int, others: int) -> int:
    """How many nodes to ask a launcher for.

    A driver alone takes any launcher that there is; several need as many nodes together as all of them want, or as the
    site has.
    """
    if not others:
        return 0 if sites.has_launcher(site) else nodes
    return max(0, min(nodes, min(nodes + others, site.nodes) - sites.launcher_nodes(site)))


def forget_started(home: Path) -> None:
    """Nothing that sessions started runs any more: what runs from now on is the user's own."""
    (home / STARTED_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def _started(home: Path, keep_service: bool, tell: Tell) -> Iterator[_Started]:
    """The note of what sessions started; the last session to leave stops all of it."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / SESSIONS_LOCK).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        ours = _Started(home / STARTED_FILE)
        try:
            yield ours
        finally:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another session still uses the service; the last one stops it")
            else:
                names = ours.names()
                stopped = ", ".join(name for name in reversed(names) if name != "service" or not keep_service)
                with contextlib.ExitStack() as shown:
                    try:
                        if stopped:
                            shown.enter_context(tell(f"stopping {stopped}"))
                    finally:  # nothing is left running where nobody listens any more
                        ours.stop_all(home, keep_service)


class _Started:
    """Names of what sessions in this home have started and not stopped yet, on disk before it is started."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """In the order in which they were started."""
        return list(json.loads(self._path.read_text())) if self._path.is_file() else []

    def note(self, name: str, running: bool) -> None:
        """Say that this is about to be started; what runs already is the user's, or noted before."""
        names = self.names()
        if not running and name not in names:
            write_json(self._path, [*names, name])

    def stop_all(self, home: Path, keep_service: bool) -> None:
        """Stop what was started, the last first."""
        for name in reversed(self.names()):
            what, _, site_name = name.partition(" ")
            if what == "service":
                if not keep_service and service.status(home).phase is not service.Phase.ABSENT:
                    service.stop(home)
            elif service.status(home).phase is service.Phase.RUNNING:
                site = sites.open_site(home, site_name)
                (sites.stop_launchers if what == "launcher" else sites.stop_agent)(site)
            else:
                end_all(sites.open_site(home, site_name).path)  # without a service there is nobody to tell
            write_json(self._path, [other for other in self.names() if other != name])
        self._path.unlink(missing_ok=True)
