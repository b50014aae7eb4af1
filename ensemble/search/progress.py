"""A search on a display: one bar for the trials that have ended, one for every trial that runs."""

from __future__ import annotations

from ensemble.display import Display, job_folders
from ensemble.jobs import CampaignJobs
from ensemble.search.definition import Search
from ensemble.search.driver import SearchRun, run_search
from ensemble.search.keys import trial_key
from ensemble.search.ledger import Ledger, Trial


def search_with_display(
    run: SearchRun, search: Search, jobs: CampaignJobs, workers: int, trials: int, display: Display
) -> Ledger:
    """`run_search`, shown: a line for every trial that ends, bars for those that run."""
    open_keys: list[str] = []
    shown: set[int] = set()
    with display.phase(f"search {run.name}", lambda: job_folders(jobs, list(open_keys))) as update:

        def on_change(ledger: Ledger) -> None:
            open_keys[:] = [trial_key(run.name, trial.number) for trial in ledger.open_trials()]
            final = ledger.final_trials()
            for trial in final:
                if trial.number not in shown:
                    shown.add(trial.number)
                    display.say(trial_line(trial))
            update(len(final), trials)

        return run_search(run, search, jobs, workers, trials, on_change)


def trial_line(trial: Trial) -> str:
    """One line on a trial that has ended."""
    values = " ".join(f"{k}={v:.2g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.configuration.items())
    if trial.objective is None:
        assert trial.outcome is not None
        return f"trial {trial.number}: {trial.outcome.failure} ({trial.outcome.message})  {values}"
    objective = trial.objective if isinstance(trial.objective, tuple) else (trial.objective,)
    return f"trial {trial.number}: objective {', '.join(f'{number:.4g}' for number in objective)}  {values}"
