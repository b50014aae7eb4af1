"""A search on a display: one bar for the trials that have ended, one for every trial that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ensemble.display import Display
from ensemble.search.definition import Search
from ensemble.search.driver import Limits
from ensemble.search.keys import trial_key
from ensemble.search.ledger import Ledger, Trial, TrialState
from ensemble.search.run import SearchRun, run_search
from ensemble.search.runners import Runner
from ensemble.search.seats import Seat

# Of so many trials that run at most, each has a bar of its own.
MOST_BARS = 12
# Of so many trials at most, each has a line when it ends; of more, `ensemble search status` tells.
MOST_LINES = 1000


def search_with_display(
    run: SearchRun,
    search: Search,
    make_runner: Callable[[], Runner],
    limits: Callable[[], Limits],
    display: Display,
    folder_of: Callable[[str], Path] | None = None,
    accept_changes: bool = False,
    seat: Seat | None = None,
) -> Ledger:
    """`run_search`, shown: a line for every trial that ends, bars for those that run.

    `folder_of`: key of a task -> folder where its job writes how far it is; without it there are no such bars.
    """
    folders: dict[str, Path] = {}
    shown = 0
    with display.phase(f"search {run.name}", lambda: dict(folders)) as update:

        def on_change(ledger: Ledger) -> None:
            nonlocal shown
            if folder_of is not None:
                ours = seat.number if seat else 0
                submitted = ledger.in_state(TrialState.SUBMITTED)
                running = [trial for trial in submitted if trial.driver == ours][:MOST_BARS]
                now = {
                    f"trial {t.number}": folder_of(trial_key(run.name, t.number, t.rung, t.attempt)) for t in running
                }
                folders.clear()
                folders.update(now)
            ended = ledger.ended
            for trial in ended[shown:]:
                if len(ledger.trials) <= MOST_LINES:
                    display.say(trial_line(trial))
            shown = len(ended)
            update(shown, limits().trials)

        return run_search(run, search, make_runner, limits, on_change, accept_changes, seat)


def trial_line(trial: Trial) -> str:
    """One line on a trial that has ended."""
    values = " ".join(f"{k}={v:.2g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.configuration.items())
    if trial.objectives is None:
        assert trial.outcome is not None
        return f"trial {trial.number}: {trial.failure} ({trial.outcome.message})  {values}"
    stopped = f", given up at rung {trial.rung}" if trial.state is TrialState.STOPPED else ""
    objectives = ", ".join(f"{number:.4g}" for number in trial.objectives)
    return f"trial {trial.number}: objective {objectives}{stopped}  {values}"
