"""Trials as Balsam jobs, on as many nodes as launchers have just now.

The jobs outlive the driver: the next one submits what its journal calls open, and finds the same jobs by their keys.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from apps.core.errors import ParameterError, StateError, TransientError
from ensemble.campaigns import CampaignData
from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search.definition import JobSize, Search
from ensemble.search.keys import trial_key
from ensemble.search.runners.contract import Assignment, Report, Runner, TrialParameters, refused
from ensemble.sites import Site, running_nodes

if TYPE_CHECKING:
    from ensemble.search.run import SearchRun

log = logging.getLogger(__name__)

# The agent knows of launchers that come and go a second after; asking more often tells nothing new.
NODES_AGE_S = 2.0


class BalsamRunner(Runner):
    """Runs each assignment as a job of a campaign, tagged `search` and `trial`.

    The agent does not start a job again whose process the machine ended: the driver does, as another attempt and after
    a while.  Where a launcher ends (its walltime), the agent has the next one go on with the job.
    """

    lasting = True

    def __init__(
        self,
        jobs: CampaignJobs,
        search: Search,
        data: CampaignData,
        folder: Path,
        seed: int,
        name: str,
        nodes: Callable[[], int],
        most_nodes: int | None = None,
    ) -> None:
        """jobs: open, of the campaign.  search, data, folder, seed: see TrialParameters.  name: of the search.

        nodes: asks how many nodes launchers have (ensemble.sites.running_nodes).  most_nodes: of one job; an assignment
        that needs more, which no launcher could ever start, is refused.
        """
        self._jobs, self._stage, self._name = jobs, search.stage, name
        self._parameters = TrialParameters(search, data, folder, seed)
        self._ask_nodes, self._most_nodes = nodes, most_nodes
        self._nodes, self._nodes_asked = 0, float("-inf")
        self._ended: queue.SimpleQueue[Report | BaseException] = queue.SimpleQueue()
        self._error: BaseException | None = None

    def take_over(self, assignments: Sequence[Assignment]) -> None:
        self._jobs.find(self._key(assignment) for assignment in assignments)
        self.submit(assignments)

    def submit(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            key = self._key(assignment)
            try:
                task = self._task(key, assignment)
            except Exception as error:
                self._ended.put(Report(assignment, refused(key, error)))
                continue
            self._jobs.submit(task).add_done_callback(self._note_of(assignment))

    def wait(self, timeout_s: float) -> list[Report]:
        """Raises TransientError where the service does not answer; what had ended before is reported first."""
        reports: list[Report] = []
        try:
            if self._error is None:
                self._take(self._ended.get(timeout=max(timeout_s, 0.0)), reports)
            while not self._ended.empty():
                self._take(self._ended.get(), reports)
        except queue.Empty:
            pass
        if self._error is not None and not reports:
            error, self._error = self._error, None
            raise error
        return reports

    def nodes(self) -> int:
        """Asked anew every two seconds; the last answer holds while the service does not give one."""
        now = time.monotonic()
        if now - self._nodes_asked > NODES_AGE_S:
            self._nodes_asked = now
            try:
                self._nodes = self._ask_nodes()
            except (TransientError, StateError) as error:  # it may be starting again
                log.warning("the number of nodes is not known just now error=%s", error)
        return self._nodes

    def close(self) -> None:
        """Nothing to do: jobs go on in Balsam."""

    def _key(self, assignment: Assignment) -> str:
        return trial_key(self._name, assignment.trial, assignment.rung, assignment.attempt)

    def _task(self, key: str, assignment: Assignment) -> Task:
        size = assignment.size
        if self._most_nodes is not None and size.num_nodes > self._most_nodes:
            raise ParameterError(
                f"{size}: there are {self._most_nodes} nodes at most; give more workers, or a larger site"
            )
        return Task(
            key,
            self._stage,
            self._parameters.make(assignment),
            tags={"search": self._name, "trial": str(assignment.trial)},
            num_nodes=size.num_nodes,
            ranks_per_node=size.ranks_per_node,
            time_limit_s=assignment.time_limit_s,
            max_attempts=1,
        )

    def _note_of(self, assignment: Assignment) -> Callable[[Future[Outcome]], None]:
        def note(future: Future[Outcome]) -> None:
            error = future.exception()
            self._ended.put(Report(assignment, future.result()) if error is None else error)

        return note

    def _take(self, ended: Report | BaseException, reports: list[Report]) -> None:
        if isinstance(ended, Report):
            reports.append(ended)
        else:
            self._error = self._error or ended


def balsam_runner(
    run: SearchRun, search: Search, jobs: CampaignJobs, site: Site, most_nodes: int | None = None
) -> Callable[[], BalsamRunner]:
    """What makes the runner of a search at a site, on the nodes of those launchers that run its jobs.

    most_nodes: of one job, what a launcher is asked for; the site's where it is not given.
    Raises ParameterError where every trial of the search needs more.
    """
    most_nodes = most_nodes or site.nodes
    if isinstance(search.size, JobSize) and search.size.num_nodes > most_nodes:
        raise ParameterError(
            f"every trial needs {search.size}, there are {most_nodes} nodes at most; give more --workers"
        )
    campaign = run.campaign
    tags = {"campaign": campaign.name, "campaign_uid": campaign.uid, "stage": search.stage, "search": run.name}

    def make() -> BalsamRunner:
        folder, seed = run.trials_folder, campaign.plan.seed
        nodes = partial(running_nodes, site, tags)
        return BalsamRunner(jobs, search, run.data(), folder, seed, run.name, nodes, most_nodes)

    return make
