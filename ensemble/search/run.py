"""A search of a campaign: where its files are, and running it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.core.errors import StateError
from ensemble.campaigns import Campaign, CampaignData
from ensemble.search import events
from ensemble.search.definition import Search
from ensemble.search.driver import Driver, Limits
from ensemble.search.ledger import Ledger
from ensemble.search.optimizers import OptimizerSpec
from ensemble.search.runners import Runner
from ensemble.search.seats import Seat, take_seat
from ensemble.search.suggestions import InlineSuggestions, ProcessSuggestions, Suggestions
from ensemble.search.table import write_table

log = logging.getLogger(__name__)

# Writing the table may take this share of the driver's time; the last state is always written.
TABLE_SHARE = 0.05
# Suggestions that are kept ready: one a worker, within these bounds.  Every result has those not taken made anew.
LEAST_AHEAD, MOST_AHEAD = 4, 256


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

    @property
    def trials_folder(self) -> Path:
        """Where trials write their checkpoints and volumes, one folder each."""
        return self.folder / "trials"

    def ledger(self) -> Ledger:
        """What is known of the search so far (empty before it starts), to read."""
        return Ledger(self.journal)

    def data(self) -> CampaignData:
        """The campaign's data.  Raises StateError where it is not prepared."""
        data = self.campaign.data
        if data is None:
            raise StateError(f"campaign {self.campaign.name}: its data is not prepared; give --data and --labels")
        return data


def searches_of(campaign: Campaign) -> list[SearchRun]:
    """The searches that were started in a campaign."""
    return [
        SearchRun(campaign, path.parent.name) for path in sorted((campaign.folder / "searches").glob("*/journal.jsonl"))
    ]


def open_ledger(run: SearchRun, search: Search, accept_changes: bool = False, others: bool = False) -> Ledger:
    """The journal of a search, to go on with.  The caller holds the campaign's driver lock, alone or shared.

    Raises StateError where it is of another search than `search` (Ledger.begin), DataError where it is damaged.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(run.journal)
    names = list(search.problem_for(run.data()).hyperparameter_names)
    begun = events.search_begun(names, search.objectives, search.rungs, run.campaign.plan.seed, search.source)
    ledger.begin(begun, accept_changes, others)
    return ledger


def make_suggestions(run: SearchRun, search: Search, ledger: Ledger, workers: int, seat: int = 0) -> Suggestions:
    """The optimiser of a driver, in a process beside this one where asking it takes time.

    Drivers of one search have random streams of their own, by their seats; each goes on where its seat was.
    """
    seed = run.campaign.plan.seed
    spec = OptimizerSpec(
        search.optimizer,
        search.problem_for(run.data()),
        int(np.random.SeedSequence([seed, seat]).generate_state(1)[0]) if seat else seed,
        sum(trial.suggested_by == seat for trial in ledger.trials),
        len(search.objectives),
        search.initial_points,
        search.optimizer_options,
    )
    if search.optimizer != "cbo":
        return InlineSuggestions(spec())
    return ProcessSuggestions(spec, ahead=min(MOST_AHEAD, max(LEAST_AHEAD, workers)))


def run_search(
    run: SearchRun,
    search: Search,
    make_runner: Callable[[], Runner],
    limits: Callable[[], Limits],
    on_change: Callable[[Ledger], None] = lambda ledger: None,
    accept_changes: bool = False,
    seat: Seat | None = None,
) -> Ledger:
    """Run until the limits' number of trials has ended; returns the ledger.

    The caller holds the campaign's driver lock: alone, or shared with the other drivers of its searches, which then
    work on this search together.  `seat`: the driver's, where it holds one already.

    Continues what the journal holds: the optimiser is told of finished trials, the runner finds open ones again.
    The campaign's table is written as results come.  `on_change` is called after every round of decisions.
    Raises StateError where the campaign has no data or the journal is of another search, ParameterError and DataError
    for what the search file gives wrongly.
    """
    limits()  # refused before anything is made
    if seat is None:
        with take_seat(run.folder) as seat:
            return run_search(run, search, make_runner, limits, on_change, accept_changes, seat)
    ledger = open_ledger(run, search, accept_changes, others=bool(seat.others()))
    table = _TableWriter(run)

    def changed(ledger: Ledger) -> None:
        table.look(ledger)
        on_change(ledger)

    with make_suggestions(run, search, ledger, limits().workers, seat.number) as suggestions:
        runner = make_runner()
        try:
            Driver(search, ledger, suggestions, runner, limits, seat, changed).run()
        except BaseException:
            table.write()
            raise
        finally:
            runner.close()
    write_table(run.campaign)
    return ledger


class _TableWriter:
    """Writes the campaign's table where trials have reported, but not so often that it costs much."""

    def __init__(self, run: SearchRun) -> None:
        self._run, self._reports, self._not_before = run, 0, 0.0

    def look(self, ledger: Ledger) -> None:
        reports = ledger.reports
        if reports == self._reports or time.monotonic() < self._not_before:
            return
        begin = time.monotonic()
        self.write()
        end = time.monotonic()
        self._reports, self._not_before = reports, end + (end - begin) / TABLE_SHARE

    def write(self) -> None:
        """Write it; where that cannot be, say so: it can be made of the journal at any time, and ends no search."""
        try:
            write_table(self._run.campaign)
        except Exception as error:
            log.warning("table not written file=%s error=%s", self._run.campaign.table, error)
