"""libEnsemble as a peer, run by the Python of its own environment: `search_libensemble.py aposmm|random TASK`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks.objectives import BOUND, DIMENSIONS, Evaluations, Task

# It imports what is in that environment alone, and numpy.
SAMPLE_PER_WORKER = 2
FOREVER_S = 7 * 24 * 3600


def main(generator: str, task: Task) -> None:
    import libensemble.gen_funcs

    libensemble.gen_funcs.rc.aposmm_optimizers = "scipy"
    from libensemble import Ensemble, logger
    from libensemble.specs import AllocSpecs, ExitCriteria, GenSpecs, LibeSpecs, SimSpecs

    logger.set_level("ERROR")
    evaluate = Evaluations(task)

    def simulate(history: Any, persistent: Any, specs: Any, _: Any) -> tuple[Any, Any]:
        found = np.zeros(1, dtype=specs["out"])
        found["f"] = -evaluate(history["x"][0])  # libEnsemble minimises
        return found, persistent

    bounds = {"lb": np.full(DIMENSIONS, -BOUND), "ub": np.full(DIMENSIONS, BOUND)}
    function, allocation, options, fields = GENERATORS[generator](task)
    columns = {"x": ("x", float, DIMENSIONS), "x_on_cube": ("x_on_cube", float, DIMENSIONS)}
    ensemble = Ensemble(
        sim_specs=SimSpecs(sim_f=simulate, inputs=["x"], outputs=[("f", float)]),
        gen_specs=GenSpecs(
            gen_f=function,
            persis_in=["f", "x", "sim_id", *(name for name, _ in fields)],
            outputs=[columns["x"], *(columns.get(name, (name, kind)) for name, kind in fields)],
            user={**bounds, **options},
        ),
        alloc_specs=AllocSpecs(alloc_f=allocation, user={"async_return": True}),
        libE_specs=LibeSpecs(
            nworkers=task.workers, comms="threads", gen_on_manager=True, safe_mode=False, disable_log_files=True
        ),
        exit_criteria=ExitCriteria(wallclock_max=FOREVER_S),
    )
    ensemble.add_random_streams(seed=task.seed)
    ensemble.run()


def _random(task: Task) -> tuple[Any, Any, dict[str, Any], list[tuple[str, type]]]:
    from libensemble.alloc_funcs.start_only_persistent import only_persistent_gens
    from libensemble.gen_funcs.persistent_sampling import persistent_uniform

    return persistent_uniform, only_persistent_gens, {"initial_batch_size": task.workers}, []


def _aposmm(task: Task) -> tuple[Any, Any, dict[str, Any], list[tuple[str, type]]]:
    from libensemble.alloc_funcs.persistent_aposmm_alloc import persistent_aposmm_alloc
    from libensemble.gen_funcs.persistent_aposmm import aposmm

    options = {
        "initial_sample_size": SAMPLE_PER_WORKER * task.workers,
        "max_active_runs": task.workers,
        "localopt_method": "scipy_COBYLA",
        "opt_return_codes": [0],
        "dist_to_bound_multiple": 0.5,
    }
    fields = [("x_on_cube", float), ("sim_id", int), ("local_min", bool), ("local_pt", bool)]
    return aposmm, persistent_aposmm_alloc, options, fields


GENERATORS = {"random": _random, "aposmm": _aposmm}


if __name__ == "__main__":
    main(sys.argv[1], Task.load(sys.argv[2]))
