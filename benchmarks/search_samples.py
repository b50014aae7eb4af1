"""A search that evaluates one configuration at a time: `python -m benchmarks.search_samples SYSTEM SEED COUNT`.

Prints the objectives as JSON, in order.  SYSTEM is `ensemble` (our optimiser) or `deephyper cbo` (as it comes).
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from benchmarks.objectives import NAMES, ackley, optimum_of
from benchmarks.search_peers import ackley_problem


def ours(seed: int, count: int) -> list[float]:
    from ensemble.search.optimizers import Observation, make_optimizer

    optimum, values = optimum_of(seed), []
    optimizer = make_optimizer("cbo", ackley_problem(), seed)
    for _ in range(count):
        (configuration,) = optimizer.ask(1)
        values.append(ackley([configuration[name] for name in NAMES], optimum))
        optimizer.tell([Observation(configuration, (values[-1],))])
    return values


def deephyper(seed: int, count: int) -> list[float]:
    from deephyper.evaluator import Evaluator
    from deephyper.hpo import CBO

    optimum, values = optimum_of(seed), []

    def evaluate(job: Any) -> float:
        values.append(ackley([job.parameters[name] for name in NAMES], optimum))
        return values[-1]

    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator.create(evaluate, method="thread", method_kwargs={"num_workers": 1})
        CBO(ackley_problem(), evaluator, random_state=seed, log_dir=folder).search(max_evals=count)
    return values[:count]


SYSTEMS = {"ensemble": ours, "deephyper cbo": deephyper}


if __name__ == "__main__":
    print(json.dumps(SYSTEMS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))))
