"""The table of quality of a pipeline: a row for every measure of every section at every step.

Its columns are described in analysis.quality.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.quality import COLUMNS
from apps.core.files import write_atomically
from apps.core.quality import MODULES, load_quality
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.engine import Plans
from ensemble.pipeline.planners.contract import SectionStatus

TABLE_FILE = "quality.csv"


def quality_table(pipeline: Pipeline, plans: Plans) -> pd.DataFrame:
    """Steps in the pipeline's order, sections by number; a section with nothing measured has one row without values."""
    rows = []
    for name, plan in plans.items():
        step = pipeline.steps[name]
        if step.stage not in MODULES:
            continue
        quality, thresholds = load_quality(step.stage), step.thresholds()
        for section, status in sorted(plan.sections.items()):
            common = {"step": name, "stage": step.stage, "section": section, "state": status.state}
            common["faults"] = "; ".join(status.reasons)
            measures = quality.measures if status.values else ()
            rows += [
                {
                    **common,
                    "measure": measure.name,
                    "value": status.values.get(measure.name),
                    "unit": measure.unit,
                    "better": measure.better,
                    "threshold": thresholds.get(measure.name),
                    "passed": _passed(measure.name, status, thresholds),
                    "description": measure.description,
                }
                for measure in measures
            ] or [common]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_table(table: pd.DataFrame, folder: Path) -> Path:
    """Write it as `quality.csv` of the campaign's folder, whole or not at all."""
    file = folder / TABLE_FILE
    write_atomically(file, table.to_csv(index=False).encode())
    return file


def _passed(measure: str, status: SectionStatus, thresholds: dict[str, float]) -> bool | None:
    if measure not in thresholds or status.values.get(measure) is None:
        return None
    return measure not in {miss.measure for miss in status.missed}
