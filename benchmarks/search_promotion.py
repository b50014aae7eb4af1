"""The case `promotion` of search_quality: FFN trials with promotion, and the same trials to their full budgets.

Both searches suggest at random from one seed, so that they are of the same configurations, which train FFNs on a
phantom and are judged by their loss on another.  Two processes that have loaded TensorFlow run the trials; their start
is no part of the node-seconds, which with budgets of seconds it would be most of.  Training the best again with other
seeds shows within what error two bests are the same.  All of it is done for several seeds, which give other phantoms,
other configurations and other weights; the settings were chosen with seed 1, which is none of them.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import DivergedError
from apps.core.parameters import Parameters, json_hash
from benchmarks.harness import Figure
from benchmarks.training_task import MEAN, STD
from ensemble.campaigns import CampaignData, CampaignPlan, create_campaign
from ensemble.search.definition import Configuration, Search, TrialRequest
from ensemble.search.driver import Limits, best_trial
from ensemble.search.ledger import Ledger
from ensemble.search.promotion import AsynchronousHalving
from ensemble.search.run import SearchRun, run_search
from ensemble.search.runners.threads import ThreadRunner
from ensemble.simulation.plan import simulated_data

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

SEEDS = {False: (2, 3, 4), True: (2,)}
WORKERS = 2
EXTENT = 96
CANVASES = 128
EMA = 0.98
TRAINING, HELD_OUT = "training", "held-out"
# A phantom that seconds of training learn.
DESIGN: dict[str, float] = {
    "shading": 8.0,
    "cytoplasm_variation": 4.0,
    "texture": 2.0,
    "noise": 8.0,
    "membrane_thickness": 5.0,
    "mitochondria": 0.0,
    "vesicle_clusters": 0.0,
}
FOV, DELTAS = (13, 13, 13), (3, 3, 3)
GOAL_SHARE = 1 / 3


@dataclass(frozen=True)
class Effort:
    """Trials, rungs in training steps, the factor of halving, and with how many seeds the best is trained again."""

    trials: int
    rungs: tuple[int, ...]
    factor: int
    seeds: int


EFFORT = {False: Effort(16, (100, 400, 1200), 4, 4), True: Effort(2, (2, 8), 4, 1)}


def promotion_case(quick: bool) -> list[Figure]:
    """Every seed's figures, and by their medians whether the goals are met."""
    effort = EFFORT[quick]
    compared = [compare(effort, seed) for seed in SEEDS[quick]]
    figures = [figure for one in compared for figure in one.figures()]
    note = f"median over the seeds {', '.join(str(one.seed) for one in compared)}"
    share = statistics.median(one.share for one in compared)
    lost = statistics.median(one.lost / max(one.tolerance, 1e-9) for one in compared)
    return [
        *figures,
        Figure("promotion: share of the node-seconds", share, "", None if quick else GOAL_SHARE, note=note),
        Figure("promotion: objective lost, in what it may lose", lost, "", None if quick else 1.0, note=note),
    ]


@dataclass(frozen=True)
class Comparison:
    """The two searches of one seed, and the objectives of the best of the full one with its own and other seeds.

    Trainings with other seeds that diverged are left out of `again`.
    """

    seed: int
    effort: Effort
    full: Ledger
    halving: Ledger
    again: tuple[float, ...]

    @property
    def share(self) -> float:
        return node_seconds(self.halving) / node_seconds(self.full)

    @property
    def lost(self) -> float:
        """What promotion's best lacks to that of the full budgets."""
        return best_of(self.full) - best_of(self.halving)

    @property
    def tolerance(self) -> float:
        """Two standard deviations of one configuration's objective over seeds: within it two bests are the same."""
        return 2 * statistics.stdev(self.again)

    def figures(self) -> list[Figure]:
        rungs = self.effort.rungs
        reached = [sum(len(trial.reports) > rung for trial in self.halving.trials) for rung in range(len(rungs))]
        steps, numbers = ", ".join(map(str, rungs)), ", ".join(map(str, reached))
        note = f"rungs of {steps} steps, factor {self.effort.factor}; {numbers} trials reached them"
        all_of = f"{len(self.full.trials)} trials of {rungs[-1]} steps"
        best = best_trial(self.full)
        assert best is not None
        turned = f"loss turned round; {best.configuration}"
        may = f"may lose {self.tolerance:.4g}: two standard deviations over {len(self.again)} seeds that converged"
        name = f"seed {self.seed}, "
        return [
            Figure(f"{name}full budgets: node-seconds", node_seconds(self.full), "s", note=all_of),
            Figure(f"{name}full budgets: best objective", best_of(self.full), "", None, "higher", turned),
            Figure(f"{name}promotion: node-seconds", node_seconds(self.halving), "s", note=note),
            Figure(f"{name}promotion: best objective", best_of(self.halving), "", None, "higher"),
            Figure(f"{name}promotion: share of the node-seconds", self.share, ""),
            Figure(f"{name}promotion: objective lost", self.lost, "", note=may),
        ]


def compare(effort: Effort, seed: int) -> Comparison:
    """Run both searches of one seed, and the best of the full one again with other seeds."""
    with tempfile.TemporaryDirectory(prefix="ensemble-promotion-") as name:
        folder = Path(name)
        with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
            pool.submit(prepare, name, seed).result()
            warm = [pool.submit(evaluate, name, f"warm-{n}", CHEAPEST, 1, 1, n) for n in range(WORKERS)]
            for future in warm:
                future.result()
            full = _search(folder / "full", name, pool, replace(effort, rungs=effort.rungs[-1:]), seed)
            halving = _search(folder / "halving", name, pool, effort, seed)
            best = best_trial(full)
            if best is None:
                raise RuntimeError("no trial has an objective")
            configuration, steps = best.configuration, effort.rungs[-1]
            others = range(1000 * seed, 1000 * seed + effort.seeds)
            again = [pool.submit(evaluate, name, f"seed-{s}", configuration, steps, steps, s) for s in others]
            values = [best_of(full), *(negative_loss(one.result()) for one in again if not diverged(one))]
    return Comparison(seed, effort, full, halving, tuple(values))


def diverged(training: Future[dict[str, Any]]) -> bool:
    """Whether it did; waits for its end.  A good configuration may, with another seed."""
    return isinstance(training.exception(), DivergedError)


def node_seconds(ledger: Ledger) -> float:
    """By the trials' own clocks, over all rungs."""
    records = [report.outcome.record for trial in ledger.trials for report in trial.reports]
    costs = [record["cost"] for record in records if record is not None]
    return float(sum(cost["end"] - cost["start"] for cost in costs))


def best_of(ledger: Ledger) -> float:
    """The best objective.  Raises RuntimeError where no trial has one."""
    best = best_trial(ledger)
    if best is None or best.objectives is None:
        raise RuntimeError("no trial has an objective")
    return best.objectives[0]


def _search(home: Path, data: str, pool: ProcessPoolExecutor, effort: Effort, seed: int) -> Ledger:
    campaign = create_campaign(home, CampaignPlan(name="promotion", seed=seed))
    campaign.save_data(simulated_data())  # nobody reads it
    full = effort.rungs[-1]

    def function(configuration: Configuration, budget: int | None) -> dict[str, Any]:
        output = str(home / json_hash(configuration))
        return pool.submit(evaluate, data, output, configuration, budget or full, full, seed).result()

    search = Search(
        problem=problem,
        parameters=_no_parameters,
        objective=negative_loss,
        optimizer="random",
        rungs=effort.rungs,
        promotion=AsynchronousHalving(factor=effort.factor),
    )
    with campaign.driver_lock():
        return run_search(
            SearchRun(campaign, "promotion"),
            search,
            lambda: ThreadRunner("promotion", function, WORKERS),
            lambda: Limits(WORKERS, effort.trials),
        )


def problem(data: CampaignData) -> HpProblem:
    """Small variants of the published network, and how to train them."""
    from deephyper.hpo import HpProblem

    space = HpProblem()
    space.add_hyperparameter((3e-4, 1e-2, "log-uniform"), "learning_rate")
    space.add_hyperparameter(["adam", "rmsprop", "momentum"], "optimizer")
    space.add_hyperparameter([4, 8], "features")
    space.add_hyperparameter((2, 3), "depth")
    return space


CHEAPEST = {"learning_rate": 1e-3, "optimizer": "adam", "features": 4, "depth": 2}


def _no_parameters(request: TrialRequest) -> Parameters:
    raise AssertionError("the runner calls a function; no stage runs")


def prepare(folder: str, seed: int) -> None:
    """In a worker: make the phantoms, to train on and to judge by, and their coordinates."""
    from apps.core.progress import silent
    from apps.core.volumes import write_volume
    from apps.partition.stage import PartitionParameters
    from apps.partition.stage import run as partition
    from apps.phantom.design import PhantomDesign
    from apps.phantom.stage import generate

    design = PhantomDesign.from_json(DESIGN)
    for number, name in enumerate((TRAINING, HELD_OUT)):
        files = _volume(folder, name)
        image, labels = generate((EXTENT,) * 3, 2 * seed + number, design)
        write_volume(files["image"], image, (10.0, 10.0, 10.0))
        write_volume(files["labels"], labels, (10.0, 10.0, 10.0))
        given = {"labels": files["labels"], "output": files["coordinates"], "fov": FOV, "deltas": DELTAS}
        partition(PartitionParameters.from_json({**given, "min_size": 500}), silent)


def evaluate(
    folder: str, output: str, configuration: Configuration, steps: int, full_steps: int, seed: int
) -> dict[str, Any]:
    """In a worker: train to `steps`, from the checkpoint in `output` where there is one; returns the stage's result."""
    from apps.core.progress import silent
    from apps.training.parameters import TrainingParameters
    from apps.training.stage import run as train

    given = {
        "volumes": [_volume(folder, TRAINING)],
        "evaluation": {"volumes": [_volume(folder, HELD_OUT)], "every": full_steps, "canvases": CANVASES},
        "output": str(Path(folder) / output),
        "model": {"fov": FOV, "deltas": DELTAS, **{name: configuration[name] for name in ("depth", "features")}},
        "optimizer": configuration["optimizer"],
        "learning_rate": configuration["learning_rate"],
        # At a constant rate, averaged, what a short training shows is what a long one is ranked by.
        "schedule": "constant",
        "ema": EMA,
        "steps": steps,
        "schedule_steps": full_steps,
        "checkpoint_every": full_steps,
        "batch_size": 8,
        "seed": seed,
        "image_mean": MEAN,
        "image_std": STD,
    }
    return train(TrainingParameters.from_json(given), silent).to_dict()


def negative_loss(result: dict[str, Any]) -> float:
    """The held-out loss after the last step, turned round so that it is maximised."""
    return -float(result["evaluation"]["metrics"]["loss"])


def _volume(folder: str, name: str) -> dict[str, str]:
    place = f"{folder}/{name}"
    return {"image": f"{place}.zarr", "labels": f"{place}-labels.zarr", "coordinates": f"{place}.npz"}
