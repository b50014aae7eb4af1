"""The systems that search, each a process that is killed in the end: `python -m benchmarks.search_peers NAME TASK`.

All evaluate benchmarks.objectives, by as many workers, and are used as their documentation says, with the settings they
come with.  libEnsemble needs another pydantic than Balsam: it has an environment of its own, made once in the user's
cache folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.objectives import BOUND, NAMES, Evaluations, Task
from benchmarks.search_trace import Trace, watch

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

LIBENSEMBLE = ("libensemble==1.6.1", "scipy==1.17.1", "mpmath==1.4.1", "numpy==2.4.6")

NOTES = {
    "ensemble": "our driver, CBO, in-process runner",
    "deephyper cbo": "deephyper.hpo.CBO as it comes, thread evaluator",
    "deephyper random": "deephyper.hpo.RandomSearch, thread evaluator",
    "optuna tpe": "TPESampler as it comes, in memory, n_jobs",
    "optuna tpe sqlite": "the same, SQLite storage",
    "libensemble aposmm": "persistent APOSMM with scipy's COBYLA, its generator for global optimisation, threads",
    "libensemble random": "persistent uniform sampling, results returned asynchronously, threads",
}
"""Name of a system -> how it is used."""


def search_with(name: str, task: Task, seconds: float, ready: int) -> Trace:
    """Have a system of NOTES search, and return what its workers did.  Raises KeyError for another name."""
    NOTES[name]
    if name.startswith("libensemble "):
        script = Path(__file__).with_name("search_libensemble.py")
        return watch([str(libensemble_python()), str(script), name.partition(" ")[2]], task, seconds, ready)
    return watch([sys.executable, "-m", "benchmarks.search_peers", name], task, seconds, ready)


def libensemble_python() -> Path:
    """The Python of libEnsemble's environment, which is made where it is missing (half a minute, needs an index)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ensemble" / "benchmarks" / LIBENSEMBLE[0].replace("==", "-")
    python, whole = folder / "bin" / "python", folder / "complete"
    if not whole.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", *LIBENSEMBLE],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"libEnsemble's environment cannot be made: {done.stdout}{done.stderr}")
        whole.touch()
    return python


def ackley_problem() -> HpProblem:
    """The space of benchmarks.objectives for DeepHyper."""
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    for name in NAMES:
        problem.add_hyperparameter((-BOUND, BOUND), name)
    return problem


def _deephyper(task: Task, search: Callable[..., Any]) -> None:
    from deephyper.evaluator import Evaluator

    evaluate = Evaluations(task)

    def run(job: Any) -> float:
        return evaluate([job.parameters[name] for name in NAMES])

    evaluator = Evaluator.create(run, method="thread", method_kwargs={"num_workers": task.workers})
    search(ackley_problem(), evaluator, random_state=task.seed, log_dir=task.folder).search()


def _deephyper_cbo(task: Task) -> None:
    from deephyper.hpo import CBO

    _deephyper(task, CBO)


def _deephyper_random(task: Task) -> None:
    from deephyper.hpo import RandomSearch

    _deephyper(task, RandomSearch)


def _optuna(task: Task, storage: str | None = None) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    evaluate = Evaluations(task)
    study = optuna.create_study(
        storage=storage, sampler=optuna.samplers.TPESampler(seed=task.seed), direction="maximize"
    )
    study.optimize(
        lambda trial: evaluate([trial.suggest_float(name, -BOUND, BOUND) for name in NAMES]), n_jobs=task.workers
    )


def _optuna_sqlite(task: Task) -> None:
    _optuna(task, f"sqlite:///{task.folder}/optuna.db")


def _ensemble(task: Task) -> None:
    from benchmarks.search_own import search_until_killed

    search_until_killed(task)


SYSTEMS: dict[str, Callable[[Task], None]] = {
    "ensemble": _ensemble,
    "deephyper cbo": _deephyper_cbo,
    "deephyper random": _deephyper_random,
    "optuna tpe": _optuna,
    "optuna tpe sqlite": _optuna_sqlite,
}


if __name__ == "__main__":
    SYSTEMS[sys.argv[1]](Task.load(sys.argv[2]))
