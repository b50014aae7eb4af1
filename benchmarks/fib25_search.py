"""A real search on the FIB-25 volume, run as a user would run it, with a failure of every kind; what became of each.

Service, site, `ensemble search run` (of benchmarks/fib25_faults.py: the shipped search over FFN variants, promotion
included), `ensemble select` and `ensemble report` are the real commands.  The failures:

    bad_configuration, diverged, bug, hung   four trials that cannot work: benchmarks/fib25_faults.py
    killed      SIGKILL for the process of a trial that goes on from an earlier rung
    walltime    the launcher's wall time (`--wall-time`) is shorter than the search: Balsam ends it, trials and all
    lost_node   SIGKILL at once for batch script, launcher and trials: everything that ran on the site's nodes

How each was recorded, and from which step an interrupted trial went on, is read afterwards in the journal, in Balsam's
jobs and events, and in the event files that every start of a training leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.core.errors import FailureKind
from benchmarks.fib25_evidence import (
    Fate,
    fates,
    full_node_seconds,
    lost,
    recorded_ends,
    repeated,
    sessions_of,
    spent_node_seconds,
)
from benchmarks.fib25_injector import Injector
from benchmarks.harness import Figure, benchmark_with_options
from ensemble.search.ledger import Ledger
from ensemble.search.run import SearchRun

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ENSEMBLE_FIB25", ROOT.parent / "shared" / "data" / "fib25"))
VOLUME = "training_sample2_z000-170.h5"
CAMPAIGN, SITE, WORKERS = "fib25", "laptop", 2
LOOK_S = 0.5
LEAST_TRIALS = 24
BY_OBJECTIVE = ("--metric", "objective", "--maximize")


@dataclass(frozen=True)
class Effort:
    """The search file, trials, the launchers' wall time in minutes (Balsam ends them two earlier), seconds at most."""

    file: str
    trials: int
    wall_time_min: int
    patience_s: float


EFFORT = {
    False: Effort("fib25_faults.py", 30, 10, 3600.0),
    True: Effort("fib25_faults_quick.py", 12, 3, 400.0),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, help="home to run in, which is kept  [default: a temporary one]")
    parser.add_argument("--report", type=Path, help="folder for the search's page and pictures")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder with {VOLUME}  [default: {DATA}]")


def run(options: argparse.Namespace) -> list[Figure]:
    effort = EFFORT[options.quick]
    with _home(options.home) as home:
        try:
            command(home, "service", "start")
            command(home, "site", "create", SITE, "--nodes", str(WORKERS))
            begin = time.monotonic()
            injector = _search(home, effort, None if options.quick else options.data / VOLUME)
            wall_s = time.monotonic() - begin
            command(home, "results", CAMPAIGN)
            selected = command(home, "select", CAMPAIGN, *BY_OBJECTIVE, "--register", CAMPAIGN)
            found = _figures(home, effort, injector, wall_s, selected.splitlines()[0], options.quick)
            if options.report:
                from benchmarks.fib25_report import shrink_page, write_pictures

                options.report.mkdir(parents=True, exist_ok=True)
                page = options.report.absolute() / "report.html"
                command(home, "report", CAMPAIGN, *BY_OBJECTIVE, "--workers", str(WORKERS), "--out", str(page))
                shrink_page(page, options.data)
                write_pictures(_run_of(home, effort), options.report, WORKERS)
            return found
        finally:
            command(home, "service", "stop")


@contextlib.contextmanager
def _home(given: Path | None) -> Iterator[Path]:
    if given:
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="ensemble-fib25-") as folder:
        yield Path(folder) / "home"


def command(home: Path, *words: str) -> str:
    """Run `ensemble` and return what it printed; what it printed is printed.  Raises RuntimeError where it fails."""
    line = [sys.executable, "-m", "ensemble.cli.main", *words, "--home", str(home)]
    done = subprocess.run(line, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    print(f"$ ensemble {' '.join(words)}\n{done.stdout}", flush=True)
    if done.returncode != 0:
        raise RuntimeError(f"ensemble {' '.join(words)} failed ({done.returncode}): {done.stdout}{done.stderr}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _run_of(home: Path, effort: Effort) -> SearchRun:
    from ensemble.campaigns import open_campaign

    return SearchRun(open_campaign(home, CAMPAIGN), Path(effort.file).stem)


def _search(home: Path, effort: Effort, volume: Path | None) -> Injector:
    """Run the search to its end, and do to it meanwhile what is to be done."""
    from ensemble.sites import open_site

    line = [sys.executable, "-m", "ensemble.cli.main", "search", "run", str(ROOT / "benchmarks" / effort.file)]
    line += ["--campaign", CAMPAIGN, "--site", SITE, "--workers", str(WORKERS), "--trials", str(effort.trials)]
    line += ["--wall-time", str(effort.wall_time_min), "--home", str(home)]
    if volume:
        line += ["--data", f"{volume}:raw", "--labels", f"{volume}:labels", "--voxel-size", "10,10,10"]
    journal = home / "campaigns" / CAMPAIGN / "searches" / Path(effort.file).stem / "journal.jsonl"
    driver = subprocess.Popen(line, cwd=ROOT, env=_environment())
    injector, deadline = None, time.monotonic() + effort.patience_s
    try:
        while driver.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the search has not ended within {effort.patience_s:.0f} s")
            if injector is None and journal.exists():
                injector = Injector(_run_of(home, effort), open_site(home, SITE), effort is EFFORT[True])
            if injector:
                injector.look()
            time.sleep(LOOK_S)
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            driver.wait(60)
    if driver.returncode != 0 or injector is None:
        raise RuntimeError(f"ensemble search run failed ({driver.returncode})")
    return injector


def _figures(home: Path, effort: Effort, injector: Injector, wall_s: float, selected: str, quick: bool) -> list[Figure]:
    from balsam.api import EventLog

    import analysis
    from ensemble import service
    from ensemble.job_requests import fetch_jobs

    service.connect(home)
    run = _run_of(home, effort)
    ledger, data = run.ledger(), run.data()
    lines = [json.loads(line) for line in run.journal.read_text().splitlines()]
    tags = [f"campaign:{CAMPAIGN}", f"search:{run.name}"]
    jobs = fetch_jobs({"tags": tags})
    ends = recorded_ends(lines, jobs, EventLog.objects.filter(tags=tags, to_state="RUN_TIMEOUT"))
    folder = run.trials_folder
    found = fates(
        ledger.trials, ends, injector.done, lambda trial: sessions_of(folder / f"{trial:04d}"), injector.step_at
    )
    trials = analysis.load_results(run.campaign.table)
    figures = [
        *_trials(ledger, effort),
        *_failures(found),
        Figure("trials lost", len(lost(ledger.trials)), "trials", 0.0),
        Figure("configurations tried twice, trials ended twice", repeated(lines), "", 0.0),
    ]
    best = analysis.select(trials, "objective", minimize=False)
    front = analysis.pareto_front(trials, "objective", minimize=False)
    on_front = "; ".join(
        f"trial {row['trial']}: {row['objective']:.3f} (VI {row['m:vi']:.3f}, filled {row['m:filled_fraction']:.2f}), "
        f"{row['m:node_hours_per_gigavoxel']:.3g} node-h/Gvox"
        for _, row in front.iterrows()
    )
    figures += [
        Figure("best objective of the full budget", best["objective"], "bits", None, "higher", selected),
        Figure("its VI", best["m:vi"], "bits"),
        Figure("its share of filled voxels", best["m:filled_fraction"], "", None, "higher"),
        Figure("smallest VI of any full budget", trials.loc[trials["job_status"] == "DONE", "m:vi"].min(), "bits"),
    ]
    for name, scores in data.trivial_answers.items():
        figures.append(Figure(f"VI of the trivial answer {name!r}", scores["vi"], "bits"))
    figures.append(Figure("trials on the front of accuracy and cost", len(front), "trials", note=on_front))
    batch = jobs[0]["data"]["parameters"]["training"]["batch_size"]
    spent, full = spent_node_seconds(ledger.trials), full_node_seconds(ledger.trials, run_budget(ledger), batch)
    estimate = "from each trial's own training speed and the rest of its last job; trials with a result"
    return [
        *figures,
        Figure("node-seconds of jobs that gave a result", spent, "s"),
        Figure("the same trials at full budgets, estimated", full, "s", note=estimate),
        Figure("share of that", spent / full, "", None if quick else 1.0),
        Figure(
            "workers busy with jobs that gave a result",
            analysis.utilisation(trials, WORKERS),
            "",
            note=f"of {WORKERS}, from the first start to the last end; what was interrupted or hung counts as idle",
        ),
        Figure("launchers that ran", len(injector.launchers), "", note=f"wall time {effort.wall_time_min} minutes"),
        Figure("wall time of `ensemble search run`", wall_s, "s"),
    ]


def run_budget(ledger: Ledger) -> int:
    """The full budget, in steps."""
    assert ledger.begun is not None
    return int(ledger.begun["rungs"][-1])


def _trials(ledger: Ledger, effort: Effort) -> list[Figure]:
    assert ledger.begun is not None
    trials = ledger.trials
    goal = effort.trials if effort is EFFORT[True] else LEAST_TRIALS
    figures = [Figure("trials", len(trials), "trials", goal, "higher")]
    for state in sorted({trial.state for trial in trials}):
        figures.append(Figure(f"trials {state}", sum(trial.state is state for trial in trials), "trials"))
    for rung, budget in enumerate(ledger.begun["rungs"]):
        reached = sum(len(trial.reports) > rung for trial in trials)
        figures.append(Figure(f"trials with a result at rung {rung}", reached, "trials", note=f"{budget} steps"))
    return figures


def _failures(found: Sequence[Fate]) -> list[Figure]:
    seen = {fate.kind for fate in found if fate.kind in fate.recorded}
    missing = ", ".join(sorted(set(FailureKind) - seen)) or "none"
    interrupted = [fate for fate in found if fate.kind.transient]
    figures = [
        Figure(
            "kinds of failure injected and recorded as such",
            len(seen),
            "kinds",
            float(len(FailureKind)),
            "higher",
            f"missing: {missing}",
        ),
        Figure(
            "interrupted trials that went on from their checkpoint",
            sum(fate.went_on for fate in interrupted),
            "trials",
            float(len(interrupted)),
            "higher",
            f"of {len(interrupted)}",
        ),
    ]
    for fate in found:
        recorded = float(fate.kind in fate.recorded)
        name = f"{fate.kind}: trial {fate.of.trial}, rung {fate.of.rung}, attempt {fate.of.attempt}"
        figures.append(Figure(name, recorded, "", 1.0, "higher", fate.sentence()))
    return figures


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.fib25_search", __doc__, run, add_options))
