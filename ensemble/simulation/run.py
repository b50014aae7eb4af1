"""Running a simulation and measuring it: a service, a site and a campaign of its own, which nothing else sees."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, ParameterError
from ensemble import service, sites
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.search.definition import Search
from ensemble.search.driver import Limits
from ensemble.search.ledger import Ledger
from ensemble.search.run import SearchRun, run_search
from ensemble.search.runners.balsam import balsam_runner
from ensemble.service.processes import end
from ensemble.session import open_session
from ensemble.simulation.clocks import ClockFile, Span, all_busy_since, utilisation
from ensemble.simulation.costs import CpuMeter
from ensemble.simulation.plan import ObjectiveFunction, Plan, as_json, simulated_data, simulated_search
from ensemble.sites.processes import agent_processes, launcher_processes

NAME = "simulation"
LOOK_S = 0.5
METER_S = 5.0
# The launcher's allocation; a simulation that takes longer gets another one, as a search would.
WALL_TIME_MIN = 24 * 60
# Points of the window at which the best objective is told.
MARKS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Measured:
    """What a simulation has shown.

    Attributes:
        ready_s: from the search's begin until every node had been given work.
        window_s: what was looked at, from then on.
        utilisation: busy node-seconds / (nodes x window), by the nodes' own clocks.
        hung: the part of it that was spent on jobs which their time limit ended.
        started, ended: jobs in the window.  rate: ended ones a second.
        notice_s: median of the time from a job's end until it stood in the search's journal.
        trials: of the search in all, by state.  failures: kind -> trials.
        best: (seconds into the window, best first objective by then); NaN before there is one.
        cores: component -> CPU seconds a second of the window.
    """

    ready_s: float
    window_s: float
    utilisation: float
    hung: float
    started: int
    ended: int
    rate: float
    notice_s: float
    trials: dict[str, int]
    failures: dict[str, int]
    best: tuple[tuple[float, float], ...]
    cores: dict[str, float]

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        """Plain JSON, together with the plan; None for numbers that are not there."""
        found = asdict(self)
        found["best"] = [[at, None if math.isnan(value) else value] for at, value in self.best]
        found["notice_s"] = None if math.isnan(self.notice_s) else self.notice_s
        return {"plan": as_json(plan), **found}


class _WindowOverError(Exception):
    """Ends the search; never seen outside of this module."""


class _Watch:
    """Looks at the clocks now and then: opens the window, and ends the search when it is over."""

    def __init__(self, plan: Plan, clocks: ClockFile, meter: CpuMeter, look: Callable[[str], None]) -> None:
        self._plan, self._clocks, self._meter, self._say = plan, clocks, meter, look
        self._next_look = self._next_meter = 0.0
        self.begun = time.time()
        self.opened: float | None = None
        self.over = False
        self.cpu: list[tuple[float, dict[str, float]]] = []

    def __call__(self, ledger: Ledger) -> None:
        now = time.time()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        if self.opened is None:
            self._clocks.read()
            self.opened = all_busy_since(self._clocks.spans, self._plan.nodes)
        # Read as soon as the window is open, and now and then: what a process has used is lost when it ends.
        if now >= self._next_meter or (self.opened is not None and not self.cpu):
            self._next_meter = now + METER_S
            used = self._meter.read()
            if self.opened is not None:
                self.cpu.append((now, used))
        self._say(self._line(ledger, now))
        if self.opened is not None and self._plan.window_s is not None and now >= self.opened + self._plan.window_s:
            self.cpu.append((now, self._meter.read()))
            self.over = True
            raise _WindowOverError

    def close(self) -> None:
        """The search has ended: where it was by itself, what its last seconds cost is not known yet."""
        if self.opened is not None and not self.over:
            self.cpu.append((time.time(), self._meter.read()))

    def _line(self, ledger: Ledger, now: float) -> str:
        since = "filling the nodes" if self.opened is None else f"{now - self.opened:.0f} s"
        return f"{since}: {len(ledger.trials)} trials, {ledger.reports} reports"


def simulate(
    search: Search,
    plan: Plan,
    function: ObjectiveFunction | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Run the search on virtual nodes and measure it.

    function: the objective (simulated_search says what there is without one).  folder: keeps the home of the
    simulation, with its campaign, journal and table; it must not exist.  say: given a line on how it stands, twice a
    second.  Everything that is started is stopped.  Raises ParameterError for a folder that exists or more nodes than a
    site can have, DataError where the search ended before all nodes had work.
    """
    simulated = simulated_search(search, plan, function)
    with _home(folder) as home:
        try:
            service.start(home)
            site = sites.create_site(home, NAME, template="simulated", nodes=plan.nodes)
            campaign = create_campaign(home, CampaignPlan(name=NAME, seed=plan.seed))
            campaign.save_data(simulated_data())
            run, clocks = SearchRun(campaign, NAME), ClockFile.of_site(site.path)
            limits = Limits(plan.nodes, plan.trials or 10**9)
            with open_session(home, campaign, NAME, plan.nodes, WALL_TIME_MIN) as jobs:
                watch = _Watch(plan, clocks, CpuMeter(home, site.path), say)
                try:
                    run_search(run, simulated, balsam_runner(run, simulated, jobs, site), lambda: limits, watch)
                except _WindowOverError:
                    pass
                finally:
                    watch.close()
                    # Nobody wants to know what becomes of the thousands of jobs that run.
                    end([*agent_processes(site.path), *launcher_processes(site.path)], [(signal.SIGKILL, 5.0)])
            clocks.read()
            return _measure(plan, run.ledger(), clocks.spans, watch)
        finally:
            service.stop(home)


@contextlib.contextmanager
def _home(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        if folder.exists():
            raise ParameterError(f"{folder}: exists already; a simulation wants a folder of its own")
        yield folder.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="ensemble-simulation-"))
    try:
        yield temporary / "home"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _measure(plan: Plan, ledger: Ledger, spans: Sequence[Span], watch: _Watch) -> Measured:
    begin = all_busy_since(spans, plan.nodes)
    if begin is None:
        raise DataError(
            f"the search ended before all {plan.nodes} nodes had work; give more trials, or fewer nodes, and look at "
            "how its trials failed with `ensemble results`"
        )
    last_start = max(span.start for span in spans)
    # A search that ended by itself had nothing left to give to nodes after its last start.
    end = begin + plan.window_s if watch.over and plan.window_s is not None else last_start
    window = end - begin
    reports = sorted((report for trial in ledger.trials for report in trial.reports), key=lambda report: report.time)
    lags = sorted(r.time - r.outcome.record["cost"]["end"] for r in reports if r.outcome.record is not None)
    ended = sum(begin < span.end <= end for span in spans)
    first, last = (watch.cpu[0], watch.cpu[-1]) if watch.cpu else ((0.0, {}), (0.0, {}))
    metered = last[0] - first[0]
    best = []
    for mark in MARKS:
        until = begin + mark * window
        best.append((mark * window, max((r.objectives[0] for r in reports if r.time <= until), default=math.nan)))
    return Measured(
        ready_s=begin - watch.begun,
        window_s=window,
        utilisation=utilisation(spans, plan.nodes, begin, end),
        hung=utilisation([span for span in spans if span.hung], plan.nodes, begin, end),
        started=sum(begin < span.start <= end for span in spans),
        ended=ended,
        rate=ended / window if window > 0 else 0.0,
        notice_s=lags[len(lags) // 2] if lags else math.nan,
        trials=dict(Counter(trial.state.value for trial in ledger.trials)),
        failures=dict(Counter(trial.failure.value for trial in ledger.trials if trial.failure)),
        best=tuple(best),
        cores={name: (last[1][name] - first[1][name]) / metered for name in last[1]} if metered > 0 else {},
    )
