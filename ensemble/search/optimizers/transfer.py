"""Knowledge of an earlier search, from its results table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import DataError, FailureKind
from ensemble.search.optimizers.contract import Observation
from ensemble.search.space import plain_configuration

if TYPE_CHECKING:
    import pandas as pd

_UNLUCKY = (FailureKind.BUG, FailureKind.NO_ROOM)
NOT_THEIR_FAULT = frozenset(kind.value for kind in FailureKind if kind.transient or kind in _UNLUCKY)


def observations_from_table(path: str | Path, names: Sequence[str], objectives: int = 1) -> list[Observation]:
    """The finished and failed trials of a results table (.parquet or .csv), as observations of a space.

    Args:
        path: a table with columns `p:<hyperparameter>` and `objective`, or `objective_0`, `objective_1`, ...; this
            project's, or DeepHyper's results.csv.
        names: the hyperparameters of the space, all of which the table must have and no others.
        objectives: how many objectives.

    A row with a number for each objective is an outcome.  A failed one (by `m:failure`, or DeepHyper's `F...` for an
    objective) is a failure of the configuration, unless the machine or a bug was at fault.  That, and trials that had
    not ended, say nothing and are passed over.

    Raises DataError where the file is missing, no table, of another space or of other objectives.
    """
    table = _read(Path(path))
    found = {column.removeprefix("p:") for column in table.columns if column.startswith("p:")}
    if found != set(names):
        raise DataError(
            f"{path}: a table of another space: its hyperparameters are {_listed(found)}, those of this search "
            f"{_listed(names)}"
        )
    columns = ["objective"] if objectives == 1 else [f"objective_{i}" for i in range(objectives)]
    others = {column for column in table.columns if column == "objective" or column.startswith("objective_")}
    if not set(columns) <= set(table.columns) or (objectives > 1 and len(others - {"objective"}) != objectives):
        raise DataError(f"{path}: has {_listed(others)}; expected {_listed(columns)} for {objectives} objective(s)")
    observations = []
    for row in table.to_dict("records"):
        configuration = plain_configuration({name: row[f"p:{name}"] for name in names})
        outcome = _outcome([row[column] for column in columns], row.get("m:failure"))
        if outcome != ():
            observations.append(Observation(configuration, outcome))
    return observations


def _outcome(values: list[Any], failure: Any) -> tuple[float, ...] | None:
    """The objectives; None for a failure of the configuration, () for a row that says nothing."""
    import pandas as pd

    failures = [v.removeprefix("F").removeprefix("_") for v in values if isinstance(v, str) and v.startswith("F")]
    if isinstance(failure, str):
        failures.append(failure)
    if failures:
        return () if failures[0] in NOT_THEIR_FAULT else None
    if any(pd.isna(value) for value in values):
        return ()
    return tuple(float(value) for value in values)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise DataError(f"{path}: no such results table")
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); expected .parquet or .csv") from error


def _listed(names: Sequence[str] | set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
