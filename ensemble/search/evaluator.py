"""A DeepHyper Evaluator whose evaluations are Balsam jobs, for one's own DeepHyper script.

    with open_session(...) as jobs:
        evaluator = BalsamEvaluator(run, search, jobs, num_workers=64)
        CBO(problem, evaluator).search(max_evals=1000)

A configuration is submitted once in the life of its journal: asked for again (the script was killed and run again), it
is found there, finished or running, and its result is returned.  A failed trial becomes the objective `F_<kind>`; it
never ends the search.  Submission and polling are those of `CampaignJobs`: one thread each.  Trials run whole, with the
budget of the last rung; promotion, back-off and suggestions beside the workers' time are our own driver's (run.py).
"""

from __future__ import annotations

import asyncio

from deephyper.evaluator import Evaluator, HPOJob

from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search import events
from ensemble.search.definition import Configuration, ObjectivesError, Search
from ensemble.search.driver import objective_failed
from ensemble.search.keys import trial_key
from ensemble.search.ledger import Trial, TrialState
from ensemble.search.run import SearchRun, open_ledger
from ensemble.search.runners import Assignment, TrialParameters, refused
from ensemble.search.space import plain_configuration


class BalsamEvaluator(Evaluator):
    """Evaluate configurations as Balsam jobs of one campaign.

    Args:
        run: which search of which campaign; its trials are tagged `search=<name>`.
        search: how a configuration becomes a job, and a result an objective.
        jobs: the campaign's jobs.
        num_workers: how many trials DeepHyper keeps outstanding.

    Raises StateError where the campaign has no data, or the journal is of another search.
    """

    def __init__(self, run: SearchRun, search: Search, jobs: CampaignJobs, num_workers: int = 1) -> None:
        super().__init__(run_function=search.parameters, num_workers=num_workers)
        self._run, self._search, self._jobs = run, search, jobs
        self._ledger = open_ledger(run, search)
        self._parameters = TrialParameters(search, run.data(), run.trials_folder, run.campaign.plan.seed)
        self._locks: dict[int, asyncio.Lock] = {}

    def submit(self, args_list: list[Configuration]) -> None:
        """Write the suggestions down, then hand them to the event loop."""
        plain = [plain_configuration(configuration) for configuration in args_list]
        self._ledger.suggest(plain)
        super().submit(plain)

    async def execute(self, job: HPOJob) -> HPOJob:
        """Have one configuration evaluated; the objective is a number, several, or `F_<kind>`."""
        trial = self._ledger.find(job.args)
        assert trial is not None  # submit() wrote it down
        async with self._locks.setdefault(trial.number, asyncio.Lock()):  # DeepHyper may ask for it twice
            if not trial.state.final:
                await self._evaluate(trial)
        assert trial.outcome is not None
        job.set_output(
            {
                "objective": f"F_{trial.failure}" if trial.failure else trial.objective,
                "metadata": {"trial": trial.number, "balsam_job_id": trial.outcome.job_id},
            }
        )
        return job

    async def _evaluate(self, trial: Trial) -> None:
        rung, attempt = self._search.last_rung, self._attempt(trial)
        key = trial_key(self._run.name, trial.number, rung, attempt)
        task: Task | Outcome
        try:
            task = self._task(trial, key, rung, attempt)
        except Exception as error:
            task = refused(key, error)
        if trial.state is not TrialState.SUBMITTED:
            nodes = task.num_nodes if isinstance(task, Task) else 1
            self._ledger.append([events.submitted(trial.number, rung, attempt, nodes, lasting=True)])
        outcome = await asyncio.wrap_future(self._jobs.submit(task)) if isinstance(task, Task) else task
        objectives, outcome = self._observe(outcome)
        self._ledger.append([events.ended(trial.number, rung, objectives, outcome)])

    def _attempt(self, trial: Trial) -> int:
        """The attempt at the last rung that is to be made, or that was begun before."""
        if trial.rung != self._search.last_rung or trial.state is TrialState.SUGGESTED:
            return 1
        return trial.attempt + (trial.state is TrialState.WAITING)

    def _task(self, trial: Trial, key: str, rung: int, attempt: int) -> Task:
        size = self._search.size_of(trial.configuration)
        assignment = Assignment(trial.number, rung, attempt, trial.configuration, self._search.budget(rung), size)
        return Task(
            key,
            self._search.stage,
            self._parameters.make(assignment),
            {"search": self._run.name, "trial": str(trial.number)},
            num_nodes=size.num_nodes,
            ranks_per_node=size.ranks_per_node,
            time_limit_s=self._search.time_limit_s,
            max_attempts=self._search.retries.attempts,
        )

    def _observe(self, outcome: Outcome) -> tuple[tuple[float, ...] | None, Outcome]:
        if outcome.record is None or outcome.failure is not None:
            return None, outcome
        try:
            return self._search.measure(outcome.record["result"]), outcome
        except ObjectivesError:
            raise
        except Exception as error:
            return None, objective_failed(outcome, error)
