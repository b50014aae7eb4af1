"""A DeepHyper Evaluator whose evaluations are Balsam jobs.

From one's own DeepHyper script:

    with open_session(...) as jobs:
        evaluator = BalsamEvaluator(name, search, data, ledger, jobs, folder, num_workers=64)
        CBO(problem, evaluator).search(max_evals=1000)

A configuration is submitted once in the life of its ledger: asked for again (the script was killed and run again), it
is found in the ledger, finished or running, and its result is returned.  A failed trial becomes the objective
`F_<kind>`; it never ends the search.  Submission and polling are those of `CampaignJobs`: one thread each.
"""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import Any

from deephyper.evaluator import Evaluator, HPOJob

from apps.core.errors import EnsembleError, FailureKind
from ensemble.campaigns import CampaignData
from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search.definition import Configuration, Objective, Search
from ensemble.search.keys import trial_key
from ensemble.search.ledger import Ledger, Trial

log = logging.getLogger(__name__)


class BalsamEvaluator(Evaluator):
    """Evaluate configurations as Balsam jobs of one campaign.

    Args:
        name: the search's name; its trials are tagged `search=name`.
        search, data: what is searched, on what.
        ledger: the journal of this search.
        jobs: the campaign's jobs.
        folder: where trials write their checkpoints and volumes, one folder each.
        seed: given to every trial.
        num_workers: how many trials DeepHyper keeps outstanding.
    """

    def __init__(
        self,
        name: str,
        search: Search,
        data: CampaignData,
        ledger: Ledger,
        jobs: CampaignJobs,
        folder: Path,
        seed: int = 0,
        num_workers: int = 1,
    ) -> None:
        super().__init__(run_function=search.parameters, num_workers=num_workers)
        self._name, self._search, self._data = name, search, data
        self._ledger, self._jobs, self._folder, self._seed = ledger, jobs, folder, seed

    def submit(self, args_list: list[Configuration]) -> None:
        """Write the suggestions down, then hand them to the event loop."""
        plain = [plain_configuration(configuration) for configuration in args_list]
        self._ledger.suggest(plain)
        super().submit(plain)

    async def execute(self, job: HPOJob) -> HPOJob:
        """Have one configuration evaluated; the objective is a number, several, or `F_<kind>`."""
        trial = self._ledger.find(job.args)
        assert trial is not None  # submit() wrote it down
        if not trial.state.final:
            await self._evaluate(trial)
        assert trial.outcome is not None
        failed = trial.outcome.failure
        job.set_output(
            {
                "objective": f"F_{failed}" if failed else trial.objective,
                "metadata": {"trial": trial.number, "balsam_job_id": trial.outcome.job_id},
            }
        )
        return job

    async def _evaluate(self, trial: Trial) -> None:
        key = trial_key(self._name, trial.number)
        try:
            task = self._task(key, trial)
        except Exception as error:
            # A configuration that its own stage refuses is an observation, known before any node is spent on it; an
            # error in the search file's function is one of this trial, and does not end the search.
            kind = error.kind if isinstance(error, EnsembleError) else FailureKind.BUG
            self._ledger.submitted(trial)
            self._ledger.ended(trial, Outcome(key, 0, None, kind, f"{type(error).__name__}: {error}"), None)
            return
        self._ledger.submitted(trial)
        outcome = await asyncio.wrap_future(self._jobs.submit(task))
        self._ledger.ended(trial, *self._observe(outcome))

    def _task(self, key: str, trial: Trial) -> Task:
        output = str(self._folder / f"{trial.number:04d}")
        parameters = self._search.parameters(trial.configuration, self._data, output, self._seed)
        tags = {"search": self._name, "trial": str(trial.number)}
        return Task(key, self._search.stage, parameters.to_dict(), tags)

    def _observe(self, outcome: Outcome) -> tuple[Outcome, Objective | None]:
        if outcome.record is None:
            return outcome, None
        try:
            found = self._search.objective(outcome.record["result"])
            numbers = tuple(float(number) for number in (found if isinstance(found, tuple) else (found,)))
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"the objective is {found}, which is not finite")
        except Exception as error:
            log.warning("objective failed key=%s error=%s", outcome.key, error)
            message = f"the search's objective function failed on the result: {error}"
            return Outcome(
                outcome.key, outcome.job_id, outcome.record, FailureKind.BUG, message, outcome.attempts
            ), None
        return outcome, numbers if isinstance(found, tuple) else numbers[0]


def plain_configuration(configuration: dict[str, Any]) -> Configuration:
    """The same values as JSON types: numpy scalars unpacked, NaN (an inactive hyperparameter) as None."""

    def plain(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in configuration.items()}
