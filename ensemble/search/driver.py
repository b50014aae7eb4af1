"""The driver of a search: keeps workers busy until enough trials have ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apps.core.errors import ParameterError, StateError
from ensemble.campaigns import Campaign
from ensemble.jobs import CampaignJobs
from ensemble.search.definition import Search
from ensemble.search.ledger import Ledger, Trial
from ensemble.search.table import write_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchRun:
    """One search of one campaign: where its journal, its trials' files and its table are."""

    campaign: Campaign
    name: str

    @property
    def folder(self) -> Path:
        return self.campaign.folder / "searches" / self.name

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def ledger(self) -> Ledger:
        """What is known of the search so far (empty before it starts), to read."""
        return Ledger(self.journal)


def searches_of(campaign: Campaign) -> list[SearchRun]:
    """The searches that were started in a campaign."""
    return [
        SearchRun(campaign, path.parent.name) for path in sorted((campaign.folder / "searches").glob("*/journal.jsonl"))
    ]


def run_search(
    run: SearchRun,
    search: Search,
    jobs: CampaignJobs,
    workers: int,
    trials: int,
    on_change: Callable[[Ledger], None] = lambda ledger: None,
) -> Ledger:
    """Run until `trials` trials have ended, `workers` at a time; returns the ledger.

    Continues what the journal holds: finished trials are told to the optimiser, open ones are found again in Balsam.
    The campaign's table is written after every result.  `on_change` is called after every change of the ledger.
    Raises ParameterError where workers or trials are not positive, StateError where the campaign has no data.
    """
    for name, value in (("workers", workers), ("trials", trials)):
        if value < 1:
            raise ParameterError(f"{name} = {value}: expected at least 1")
    data = run.campaign.data
    if data is None:
        raise StateError(f"campaign {run.campaign.name}: its data is not prepared; give --data and --labels")
    from ensemble.search.evaluator import BalsamEvaluator
    from ensemble.search.optimizer import BayesianOptimizer

    run.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(run.journal, repair=True)  # the session holds the campaign's lock
    problem = search.problem_for(data)
    _check_space(run, ledger, set(problem.hyperparameter_names))
    seed = run.campaign.plan.seed
    evaluator = BalsamEvaluator(
        run.name, search, data, ledger, jobs, run.folder / "trials", seed=seed, num_workers=workers
    )
    log_dir = str(run.folder / "deephyper")
    optimizer = BayesianOptimizer(problem, search, evaluator, seed, len(ledger.trials), log_dir)
    optimizer.tell(ledger.final_trials())
    told = {trial.number for trial in ledger.final_trials()}
    outstanding = [trial.configuration for trial in ledger.open_trials()]
    if outstanding:
        log.info("found open trials=%d", len(outstanding))
        evaluator.submit(outstanding)
    running, exhausted = len(outstanding), False
    try:
        while True:
            while running < workers and len(ledger.trials) < trials and not exhausted:
                configuration = optimizer.ask([trial.configuration for trial in ledger.trials])
                exhausted = configuration is None
                if configuration is not None:
                    evaluator.submit([configuration])
                    running += 1
            on_change(ledger)
            if running == 0:
                break
            running -= len(evaluator.gather("BATCH", 1))
            news = [trial for trial in ledger.final_trials() if trial.number not in told]
            optimizer.tell(news)
            told |= {trial.number for trial in news}
            write_table(run.campaign)
    finally:
        evaluator.close()  # forgets what is outstanding; the jobs are Balsam's, and the next driver finds them again
    if exhausted:
        log.warning("the space holds no further configuration; trials=%d of %d", len(ledger.trials), trials)
    write_table(run.campaign)
    return ledger


def _check_space(run: SearchRun, ledger: Ledger, names: set[str]) -> None:
    """Raise StateError where the journal's trials are of another space than the search file now defines."""
    for trial in ledger.trials:
        if set(trial.configuration) != names:
            raise StateError(
                f"search {run.name} of campaign {run.campaign.name}: its trials have the hyperparameters "
                f"{', '.join(trial.configuration)}, the file now {', '.join(sorted(names))}; rename the changed file"
            )


def best_trial(ledger: Ledger) -> Trial | None:
    """The finished trial with the largest (first) objective; None before there is one."""
    done = [trial for trial in ledger.final_trials() if trial.objective is not None]

    def first(trial: Trial) -> float:
        objective = trial.objective
        assert objective is not None
        return objective[0] if isinstance(objective, tuple) else objective

    return max(done, key=first, default=None)
