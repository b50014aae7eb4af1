"""`ensemble search simulate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--nodes", type=click.IntRange(min=1), required=True, help="Virtual nodes.")
@click.option(
    "--trial-seconds",
    required=True,
    metavar="KIND:MEAN[,SPREAD]",
    help="What a trial takes: constant:60, uniform:60,20, exponential:60 or lognormal:60,0.5.",
)
@click.option("--failures", type=float, default=0.0, show_default=True, help="Share of the trials that fail.")
@click.option("--hangs", type=float, default=0.0, show_default=True, help="Share of the trials that hang.")
@click.option("--time-limit", "time_limit_s", type=float, help="Seconds until a trial is hung.  [default: six means]")
@click.option(
    "--objective", help="Function of (configuration, budget): module:function or file.py:function.  [default: a bowl]"
)
@click.option("--window", "window_s", type=float, help="Seconds to look at, once all nodes are busy.  [default: 120]")
@click.option("--trials", type=click.IntRange(min=1), help="End after so many trials instead, or at the latest.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option(
    "--keep", "folder", type=click.Path(path_type=Path), help="Keep the journal and table in this new folder."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file as well.")
def simulate(
    file: Path,
    nodes: int,
    trial_seconds: str,
    failures: float,
    hangs: float,
    time_limit_s: float | None,
    objective: str | None,
    window_s: float | None,
    trials: int | None,
    seed: int,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Try out the search that FILE defines on virtual nodes, in real time.

    Optimiser, driver, Balsam's server, agent and launcher are the real ones; the trials only take time.  So it tells
    how busy so many nodes will be kept, and what keeping them busy costs on this machine.

    \b
    Examples:
      ensemble search simulate searches/joint.py --nodes 512 --trial-seconds lognormal:60,0.5
      ensemble search simulate my.py --nodes 4096 --trial-seconds lognormal:60 --failures 0.05 --hangs 0.01 \\
          --objective my_objective.py:accuracy --window 300
    """
    from apps.core.parameters import write_json
    from ensemble.search.definition import load_search
    from ensemble.simulation.plan import Plan, Times, load_function
    from ensemble.simulation.run import simulate as simulate_search

    if window_s is None and trials is None:
        window_s = 120.0
    plan = Plan(nodes, Times.parse(trial_seconds), window_s, trials, failures, hangs, time_limit_s, seed)
    function = load_function(objective) if objective else None
    _, search = load_search(file)
    terminal = sys.stderr.isatty()

    def say(line: str) -> None:
        if terminal:
            click.echo(f"\r\033[K{line}", err=True, nl=False)

    measured = simulate_search(search, plan, function, folder, say)
    say("")
    if json_file:
        write_json(json_file, measured.to_dict(plan))
    best = ", ".join(f"{value:.4g} after {seconds:.0f} s" for seconds, value in measured.best)
    lines = {
        "all nodes busy after": f"{measured.ready_s:.1f} s",
        "window": f"{measured.window_s:.1f} s",
        "utilisation": f"{measured.utilisation:.4f}"
        + (f" (of that held by hung trials: {measured.hung:.4f})" if measured.hung else ""),
        "throughput": f"{measured.rate:.2f} jobs/s ({measured.ended} ended, {measured.started} started)",
        "end to journal": f"{measured.notice_s:.2f} s (median)",
        "trials": ", ".join(f"{count} {state}" for state, count in sorted(measured.trials.items())),
        "failures": ", ".join(f"{count} {kind}" for kind, count in sorted(measured.failures.items())) or "none",
        "best so far": best,
        "cores": ", ".join(f"{name} {share:.2f}" for name, share in measured.cores.items())
        + f"; together {sum(measured.cores.values()):.2f}",
    }
    for name, text in lines.items():
        click.echo(f"{name:<21} {text}")
    if folder:
        click.echo(f"{'kept in':<21} {folder}; look with: ensemble search status simulation --home {folder}")
