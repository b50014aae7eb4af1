"""A search that is killed again and again: what is lost, what is done twice, what the journal says.

A driver is killed (-9, with its whole process group) at a random moment and run again, many times over; at last it is
let finish what is open.  One kill in four is as it starts, the others while it searches.  Cases:

    process  trials in the driver's process, which end with it; 20 times
    balsam   trials on simulated nodes of a real Balsam, which outlive the driver; 3 times

Lost is a trial that has not ended in the end, or has another objective than its configuration gives.  Repeated is a
configuration that two trials have, a trial that ended twice, and an evaluation of a trial that had ended before.  The
journal is the same if after every start its first bytes are the whole lines that the killed driver left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure, benchmark_with_options, median
from benchmarks.objectives import NAMES, Task, ackley, optimum_of
from benchmarks.search_own import ALL_TRIALS, SITE, search_run
from benchmarks.search_trace import ROOT, kill_group, read_stamps

SEED = 1
KILLS = {"process": {False: 20, True: 1}, "balsam": {False: 3, True: 1}}
WORKERS, MEAN_S = 8, 0.3
# A kill is at a random moment of so many seconds: from the start, or from the first evaluation on.
STARTING, STARTING_S, SEARCHING_S = 0.25, 3.0, 2.5
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Cut:
    """What there was when a driver was killed: the journal's bytes, and how many evaluations had begun."""

    journal: bytes
    evaluations: int


@dataclass(frozen=True)
class Verdict:
    """What the journal shows in the end, see the module: numbers of trials; `rewritten` of starts, `again` of
    evaluations that were of a trial which had been begun before."""

    trials: int
    lost: int
    repeated: int
    rewritten: int
    again: int


@dataclass(frozen=True)
class Place:
    """Where a search is killed.

    Attributes:
        task: what it is set to do.
        where: how benchmarks.search_own is told to run it.
        begun: start times of all evaluations, in order.
        trials: the same as numbers of trials, given the journal's bytes.
    """

    task: Task
    where: str
    begun: Callable[[], list[float]]
    trials: Callable[[bytes], list[int]]

    @property
    def journal(self) -> bytes:
        path = search_run(self.task).journal
        return path.read_bytes() if path.exists() else b""

    @property
    def log(self) -> str:
        return (Path(self.task.folder) / "log.txt").read_text(errors="replace")[-2000:]

    def start(self, trials: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.search_own", str(self.task.save()), str(trials), self.where]
        with (Path(self.task.folder) / "log.txt").open("ab") as stream:
            return subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)


def run(options: argparse.Namespace) -> list[Figure]:
    cases = options.case or (["process"] if options.quick else list(PLACES))
    figures = []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="ensemble-resume-") as folder:
            task = Task(WORKERS, MEAN_S, SEED, folder)
            with PLACES[case](task) as place:
                figures += _case(case, place, KILLS[case][options.quick])
    return figures


def _case(name: str, place: Place, kills: int) -> list[Figure]:
    rng = random.Random(SEED)
    cuts: list[Cut] = []
    starts: list[float] = []
    for _ in range(kills):
        begin, known = time.time(), len(place.begun())
        driver = place.start(ALL_TRIALS)
        try:
            if cuts and rng.random() < STARTING:
                time.sleep(rng.uniform(0, STARTING_S))
            else:
                starts.append(_next_evaluation(place, driver, known) - begin)
                time.sleep(rng.uniform(0, SEARCHING_S))
        finally:
            kill_group(driver)
        if driver.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the driver ended by itself ({driver.returncode}): {place.log}")
        cuts.append(Cut(place.journal, len(place.begun())))
    driver = place.start(len(events(place.journal, "suggested")))
    try:
        code = driver.wait(PATIENCE_S)
    finally:
        kill_group(driver)
    if code != 0:
        raise RuntimeError(f"the driver failed ({code}): {place.log}")
    verdict = judge(place.journal, place.trials(place.journal), cuts, optimum_of(SEED))
    spoken = f"{verdict.trials} trials, {WORKERS} at a time; {len(starts)} kills while it searched, the others before"
    outlive = name == "balsam"
    again = "started twice" if outlive else "that ended with their driver and ran again"
    return [
        Figure(f"{name}: kills -9 of the driver", len(cuts), "", None, "higher", spoken),
        Figure(f"{name}: trials lost", verdict.lost, "trials", 0.0),
        Figure(f"{name}: trials repeated", verdict.repeated, "trials", 0.0),
        Figure(f"{name}: journals that do not go on as they were", verdict.rewritten, "starts", 0.0),
        Figure(f"{name}: evaluations {again}", verdict.again, "", 0.0 if outlive else None),
        Figure(f"{name}: start to first new evaluation", median(starts), "s", note="median"),
    ]


def judge(journal: bytes, begun: Sequence[int], cuts: Sequence[Cut], optimum: Sequence[float]) -> Verdict:
    """Hold a finished search to what it should be.

    Args:
        journal: in the end.
        begun: numbers of the trials of all evaluations that began, in order.
        cuts: what there was at every kill, in order.
        optimum: of the objective.
    """
    points = points_of(journal)
    ends = events(journal, "ended")
    endings = Counter(event["trial"] for event in ends)
    wrong = {end["trial"] for end in ends if list(end["objectives"] or []) != [ackley(points[end["trial"]], optimum)]}
    lost = {trial for trial in points if not endings[trial]} | wrong
    twice = [*Counter(points.values()).values(), *endings.values()]
    repeated = sum(count - 1 for count in twice if count > 1)
    for cut in cuts:
        ended = {event["trial"] for event in events(cut.journal, "ended")}
        repeated += sum(trial in ended for trial in begun[cut.evaluations :])
    rewritten = sum(not journal.startswith(_whole_lines(cut.journal)) for cut in cuts)
    return Verdict(len(points), len(lost), repeated, rewritten, len(begun) - len(set(begun)))


def points_of(journal: bytes) -> dict[int, tuple[float, ...]]:
    """Number of a trial -> its configuration."""
    suggested = events(journal, "suggested")
    return {event["trial"]: tuple(float(event["configuration"][name]) for name in NAMES) for event in suggested}


def events(journal: bytes, kind: str) -> list[dict[str, Any]]:
    """The events of a kind in a journal; a last line that is torn is none."""
    found = [json.loads(line) for line in _whole_lines(journal).splitlines()]
    return [event for event in found if event["event"] == kind]


def _whole_lines(journal: bytes) -> bytes:
    return journal[: journal.rfind(b"\n") + 1]


def _next_evaluation(place: Place, driver: subprocess.Popen[bytes], known: int) -> float:
    """When the first evaluation beyond those known begins.  Raises RuntimeError where none does."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and driver.poll() is None:
        begun = place.begun()
        if len(begun) > known:
            return begun[known]
        time.sleep(0.05)
    raise RuntimeError(f"the driver evaluates nothing: {place.log}")


@contextlib.contextmanager
def _process(task: Task) -> Iterator[Place]:
    offset = time.time() - time.monotonic()  # the stamps are of the other clock

    def trials(journal: bytes) -> list[int]:
        numbers = {point: trial for trial, point in points_of(journal).items()}
        return [numbers[one.x] for one in read_stamps(task.stamps)]

    yield Place(task, "process", lambda: [one.start + offset for one in read_stamps(task.stamps)], trials)


@contextlib.contextmanager
def _balsam(task: Task) -> Iterator[Place]:
    from ensemble import service, sites
    from ensemble.simulation.clocks import ClockFile

    home = Path(task.folder)
    try:
        service.start(home)
        clocks = ClockFile.of_site(sites.create_site(home, SITE, template="simulated", nodes=task.workers).path)

        def begun() -> list[float]:
            clocks.read()
            return [span.start for span in clocks.spans]

        def trials(journal: bytes) -> list[int]:
            clocks.read()
            return [int(re.findall(r"trial-(\d+)/", span.job)[-1]) for span in clocks.spans]

        yield Place(task, "balsam", begun, trials)
    finally:
        service.stop(home)  # and with it what the killed drivers left running


PLACES = {"process": _process, "balsam": _balsam}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", choices=PLACES, help="run this case only (repeat for more)")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.search_resume", __doc__, run, add_options))
