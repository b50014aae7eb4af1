"""Run a pipeline as a campaign: what `ensemble run` does once jobs can be submitted."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.quality import named_sections
from apps.core.errors import FailureKind
from apps.core.stage import code_version
from ensemble.campaigns import Campaign
from ensemble.display import Display, job_folders
from ensemble.jobs import Outcome, Task
from ensemble.pipeline.book import PipelineJobs
from ensemble.pipeline.chain import write_report
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.engine import Engine, Look
from ensemble.pipeline.page import PageContent, StepLine, write_page
from ensemble.pipeline.planners.contract import StepPlan
from ensemble.pipeline.quality_table import quality_table, write_table
from ensemble.pipeline.references import step_named_by
from ensemble.viewing.stores import REPORT_FILE

PAGE_FILE = "quality.html"
JOB_LOG = "job.out"  # Balsam's name for what a job writes to its standard output and error
ABOUT_RANKS = (
    "Ranks tell something where sections differ: of sections that are all about equally good, any order is chance.  "
    "The benchmarks of the stages have sections from good to bad."
)
# The table is for whoever watches: not written more often than this while jobs run.
TABLE_EVERY_S = 5.0


@dataclass(frozen=True)
class Written:
    """What a run wrote about itself.

    Attributes:
        report: page on what every step did, gave and cost.
        table, page: the quality of its sections; None for a pipeline whose steps do not work by sections.
    """

    report: Path
    table: Path | None = None
    page: Path | None = None


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes:
        look: the pipeline as it stands.
        written: its pages and its table.
        failures: what failed, a sentence each.
        held: step -> sections that its gate holds.
        users_fault: whether all that failed did so for wrong parameters or data.
    """

    look: Look
    written: Written
    failures: tuple[str, ...]
    held: dict[str, list[int]]
    users_fault: bool


def run_pipeline(
    pipeline: Pipeline,
    campaign: Campaign,
    jobs: PipelineJobs,
    display: Display,
    follow_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RunReport:
    """Do what can be done, and write the table and the page; steps are shown as they go on.

    `follow_s`: look again after so many seconds, for sections that have been acquired since, until `stop()`.
    """
    engine = Engine(pipeline, campaign.folder, jobs, follow=follow_s is not None)
    watcher = _Watcher(pipeline, campaign, display, jobs.workdir)
    with watcher.shown(jobs):
        look = engine.run(watcher.see, follow_s, stop)
    written = watcher.written or write_results(pipeline, campaign, look)
    held = {name: plan.held for name, plan in look.plans.items() if plan.held}
    failed = [outcome.failure for step in look.plans for outcome in look.failed(step)]
    users_fault = all(failure in (FailureKind.BAD_CONFIGURATION, FailureKind.NO_ROOM) for failure in failed)
    return RunReport(look, written, tuple(failures_of(look, jobs.workdir)), held, users_fault)


def write_results(pipeline: Pipeline, campaign: Campaign, look: Look) -> Written:
    """Write the report, and the table and the page of quality where there are sections; each whole."""
    report = write_report(campaign.folder / REPORT_FILE, pipeline, look, _node_seconds(pipeline, look))
    if not _has_sections(look):
        return Written(report)
    table = write_table(quality_table(pipeline, look.plans), campaign.folder)
    page = write_page(campaign.folder / PAGE_FILE, page_content(pipeline, campaign.name, look))
    return Written(report, table, page)


def job_name(key: str) -> str:
    """What a task is called beside those of other steps: STEP UNIT, without the hash."""
    step, _, unit = key.rpartition("/")
    return f"{step} {unit.rpartition('-')[0]}"


def _has_sections(look: Look) -> bool:
    return any(plan.sections for plan in look.plans.values())


def failures_of(look: Look, folder_of: Callable[[str], Path]) -> list[str]:
    """What failed: jobs with their messages, and steps that could not be planned.  `folder_of`: key -> work folder."""
    found = broken_steps(look)
    for step in look.plans:
        found += [_failure(step, outcome, folder_of(outcome.key)) for outcome in look.failed(step)]
    return found


def _failure(step: str, outcome: Outcome, folder: Path) -> str:
    """Which job of which step failed, of what, where its log is, and what to do."""
    kind = outcome.failure
    if kind is FailureKind.BAD_CONFIGURATION:
        advice = "mend that, and run the same command again"
    elif kind is FailureKind.NO_ROOM:
        advice = "make room, and run the same command again: what is finished stays"
    elif kind is not None and kind.transient:
        advice = "run the same command again: it goes on with what is missing"
    else:
        advice = "its log may tell more; the same command tries again"
    log = "" if str(folder) in outcome.message else f"; log: {folder / JOB_LOG}"
    return f"step {step}, job {outcome.job_id} ({outcome.key}), {kind}: {outcome.message}{log}; {advice}"


def broken_steps(look: Look) -> list[str]:
    """Why steps cannot be planned, a sentence each."""
    return [text if text.startswith(f"step {step}") else f"step {step}: {text}" for step, text in look.broken.items()]


def page_content(pipeline: Pipeline, name: str, look: Look) -> PageContent:
    """What the quality page says."""
    seconds = _node_seconds(pipeline, look)
    errors = _true_errors(pipeline, look)
    return PageContent(
        name=name,
        table=quality_table(pipeline, look.plans),
        steps=tuple(
            StepLine(
                step,
                pipeline.steps[step].stage,
                len(plan.tasks),
                look.done(step),
                len(look.failed(step)),
                len(plan.held),
                seconds[step],
            )
            for step, plan in look.plans.items()
        ),
        outputs={step: _places(pipeline, look, step) for step in look.plans},
        true_errors=errors,
        honest=() if errors is None else (ABOUT_RANKS,),
        provenance={"code version": code_version(), "host": platform.node(), "written": time.strftime("%F %T %z")},
        commands=(
            (f"ensemble gate ls {name}", "sections that gates hold"),
            (f"balsam job ls --tag campaign={name}", "its Balsam jobs (after `ensemble service env`)"),
        ),
    )


def _places(pipeline: Pipeline, look: Look, step: str) -> dict[str, str]:
    """Where the step's results, and what they were made of, lie: all that is a text among its values and parameters."""
    definition, plan = pipeline.steps[step], look.plans[step]
    done = [task for task in plan.tasks if isinstance(task.parameters, dict)]
    read = done[0].parameters if done else {}
    texts = {name: value for name, value in {**read, **plan.values}.items() if isinstance(value, str)}
    if plan.content:
        texts["first_section"] = str(min(plan.content))
    return {"stage": definition.stage, **texts}


def _true_errors(pipeline: Pipeline, look: Look) -> pd.DataFrame | None:
    """Columns step, section, error, where the pipeline audits a phantom; None elsewhere."""
    tables = []
    for name, step in pipeline.steps.items():
        errors = look.plans[name].values.get("errors") if step.stage == "audit" else None
        if errors is None or not Path(errors).is_file():
            continue
        table = pd.read_csv(errors)
        audited = {stage: step_named_by(step.parameters, stage) for stage in table["stage"].unique()}
        tables.append(table.assign(step=table["stage"].map(audited)).dropna(subset="step"))
    return pd.concat(tables)[["step", "section", "error"]] if tables else None


def _node_seconds(pipeline: Pipeline, look: Look) -> dict[str, float]:
    """Of every step: what its jobs took, by the records of those that ended well."""
    return {step: sum(_seconds_of(look, task) for task in look.plans[step].tasks) for step in pipeline.steps}


def _seconds_of(look: Look, task: Task) -> float:
    outcome = look.outcomes.get(task.key)
    if outcome is None or outcome.record is None:
        return 0.0
    cost = outcome.record["cost"]
    return float((cost["end"] - cost["start"]) * task.num_nodes)


class _Watcher:
    """Shows a run: a bar a step, a line for whatever is held or failed; keeps the table up to date while jobs run, and
    the page whenever nothing is left to do for now.
    """

    def __init__(
        self, pipeline: Pipeline, campaign: Campaign, display: Display, folder_of: Callable[[str], Path]
    ) -> None:
        self._pipeline, self._campaign, self._display, self._folder_of = pipeline, campaign, display, folder_of
        self._updates: dict[str, Callable[[int, int], None]] = {}
        self._said: set[tuple[str, ...]] = set()
        self._written = 0.0
        self._look: Look | None = None
        self.written: Written | None = None  # while it is of the last look

    @contextlib.contextmanager
    def shown(self, jobs: PipelineJobs) -> Iterator[None]:
        """Bars for the steps, and under them for the jobs that run."""
        *first, last = self._pipeline.steps
        with contextlib.ExitStack() as stack:
            for name in first:
                self._updates[name] = stack.enter_context(self._display.phase(name))
            self._updates[last] = stack.enter_context(self._display.phase(last, lambda: self._running(jobs)))
            yield

    def _running(self, jobs: PipelineJobs) -> dict[str, Path]:
        return {} if self._look is None else job_folders(jobs, sorted(self._look.running), job_name)

    def see(self, look: Look) -> None:
        before, self._look = self._look, look
        self.written = None
        for name, plan in look.plans.items():
            if plan.tasks:
                self._updates[name](look.done(name), len(plan.tasks))
            self._say_sections(name, plan)
        for sentence in failures_of(look, self._folder_of):
            self._say((sentence,), sentence)
        if not look.running and before is not None and before.running:
            self.written = write_results(self._pipeline, self._campaign, look)
            self._display.say(f"nothing runs now: {self.written.page or self.written.report}")
        elif _has_sections(look) and time.monotonic() - self._written > TABLE_EVERY_S:
            write_table(quality_table(self._pipeline, look.plans), self._campaign.folder)
            self._written = time.monotonic()

    def _say_sections(self, step: str, plan: StepPlan) -> None:
        """What became of sections that do not go on, those that miss the same in one line."""
        alike: dict[str, list[int]] = {}
        for number, status in plan.sections.items():
            if status.state == "held":
                why = f"held for {', '.join(miss.measure for miss in status.missed)}"
            elif status.state in ("absent", "waiting") and status.reasons:
                why = f"{status.state}: {'; '.join(status.reasons)}"
            else:
                continue
            if (step, str(number), why) not in self._said:
                self._said.add((step, str(number), why))
                alike.setdefault(why, []).append(number)
        for why, numbers in alike.items():
            which = f"section {numbers[0]}" if len(numbers) == 1 else f"sections {named_sections(numbers)}"
            self._display.say(f"{step}: {which} {why}")

    def _say(self, about: tuple[str, ...], sentence: str) -> None:
        """Once, whatever else changes."""
        if about not in self._said:
            self._said.add(about)
            self._display.say(sentence)
