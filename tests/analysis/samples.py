"""Tables of searches that were never run: many trials, rungs, several objectives, failures of each kind."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.columns import COLUMNS, REQUIRED

FAILURES = ("bad_configuration", "diverged", "hung", "lost_node", "walltime", "killed", "bug")
BUDGETS = (100, 300, 900)


def search_table(trials: int, rungs: int = 0, objectives: int = 1, seed: int = 0, workers: int = 32) -> pd.DataFrame:
    """As `load_results` gives it: accuracy is best at depth 8 and a rate of 1e-3, and the cost grows with the depth.

    Every eighth trial failed; with rungs a third of the trials each went on.  Times are those of that many workers.
    """
    rng = np.random.default_rng(seed)
    free = np.zeros(workers)
    rows = []
    for number in range(trials):
        depth, rate = int(rng.integers(3, 13)), float(10 ** rng.uniform(-4.5, -1.5))
        optimizer = str(rng.choice(["adam", "sgd"]))
        quality = 0.6 + 0.05 * abs(depth - 8) + 0.35 * abs(np.log10(rate) + 3) + 0.03 * rng.standard_normal()
        cost = 2.0 * depth * float(np.exp(0.05 * rng.standard_normal()))
        failure = FAILURES[number // 8 % len(FAILURES)] if number % 8 == 7 else None
        reached = 1 + int(quality < 0.95) + int(quality < 0.8) if rungs else 1
        reached = min(reached, rungs or 1)
        worker = int(free.argmin())
        spans = []
        for _ in range(reached):
            spans.append((1e9 + free[worker], 1e9 + free[worker] + 60 * float(rng.lognormal(0, 0.3))))
            free[worker] = spans[-1][1] - 1e9 + 0.5
        row = {
            "campaign": "c",
            "search": "s",
            "trial": number,
            "job_id": str(number),
            "job_status": "FAILED" if failure else "DONE" if reached == max(1, rungs) else "STOPPED",
            "attempt": 1.0,
            "p:depth": depth,
            "p:learning_rate": rate,
            "p:optimizer": optimizer,
            "p:momentum": float(rng.random()) if optimizer == "sgd" else np.nan,
            "m:failure": failure,
            "m:failure_message": f"{failure} at step {number}" if failure else None,
            "m:timestamp_start": spans[0][0],
            "m:timestamp_end": spans[-1][1],
            "m:node_seconds": sum(end - start for start, end in spans),
            "m:wall_seconds": sum(end - start for start, end in spans),
        }
        values = [quality + 0.4 * 0.5**rung for rung in range(reached)]
        if rungs:
            shown = values[:-1] if failure else values
            for rung, value in enumerate(shown):
                goals = {"objective": -value} if objectives == 1 else {"objective_0": -value, "objective_1": -cost}
                row |= {f"m:{name}_rung_{rung}": number for name, number in goals.items()}
            row |= {
                "m:rung": float(len(shown) - 1) if shown else np.nan,
                "m:budget": float(BUDGETS[len(shown) - 1]) if shown else np.nan,
                "m:stopped": "not among the best third" if row["job_status"] == "STOPPED" else None,
                "m:runs": " ".join(f"{start}:{end}" for start, end in spans),
            }
        if failure is None:
            row |= {
                "m:vi": values[-1],
                "m:vi_split": values[-1] / 2,
                "m:node_hours_per_gigavoxel": cost,
                "m:objects": 9.0,
            }
            row |= (
                {"objective": -values[-1]}
                if objectives == 1
                else dict(zip(("objective_0", "objective_1", "objective_2"), (-values[-1], -cost, -rate), strict=True))
            )
        rows.append(row)
    table = pd.DataFrame(rows)
    if objectives == 2:
        table = table.drop(columns="objective_2")
    for name in REQUIRED:
        if name not in table:
            table[name] = np.nan
    texts = {name: "str" for name in table.columns if name in COLUMNS and COLUMNS[name].kind == "text"}
    return table.astype(texts)
