"""Every column of the results table: one row is one trial.

Names follow DeepHyper's results.csv where that has one: `p:` marks a hyperparameter, `m:` what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from analysis.errors import AnalysisError

Kind = Literal["text", "whole", "number", "yes/no", "any"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: as in the table.
        kind: text (str, missing: NaN); whole (int64, never missing); number (float64, missing: NaN); yes/no (True,
            False or None); any (as the search's problem defines it).
        label: short, for table heads and plot axes, with the unit in brackets.
        meaning: what it says.
    """

    name: str
    kind: Kind
    label: str
    meaning: str


_IDENTITY = (
    Column("campaign", "text", "campaign", "named body of work that the trial belongs to"),
    Column("search", "text", "search", "search that proposed the trial"),
    Column(
        "trial", "whole", "trial", "number of the trial in its search; campaign, search and trial are unique together"
    ),
    Column("job_id", "text", "job", "Balsam job that ran the trial (DeepHyper: its job number)"),
    Column(
        "job_status",
        "text",
        "state",
        "DONE, STOPPED (given up by the promotion rule; its values are those of the last rung that it reported) or "
        "FAILED; of trials that have not ended: READY, RUNNING, PAUSED (between two rungs), CANCELLED",
    ),
    Column("attempt", "number", "attempts", "how many times a job of the trial was started, over all its rungs"),
)

_SEARCH = (
    Column(
        "objective",
        "number",
        "objective",
        "what the search maximises (DeepHyper's convention), NaN where the trial gave none; several are objective_0, "
        "objective_1, ...; in results.csv a failure is F_<kind>, which loading turns into NaN and m:failure",
    ),
    Column("m:rung", "number", "rung", "the last rung that the trial reported: 0 for the smallest budget"),
    Column("m:budget", "number", "budget", "budget of that rung (training steps, as a rule); all values are of it"),
    Column(
        "m:stopped", "text", "why stopped", "why the trial was not promoted further; missing where it was not stopped"
    ),
)

_TIME = (
    Column(
        "m:timestamp_submit",
        "number",
        "submitted (s)",
        "when the search submitted the trial: UTC epoch seconds (DeepHyper's own CSV: seconds since the search began)",
    ),
    Column("m:timestamp_gather", "number", "gathered (s)", "when the search received the outcome, in the same seconds"),
    Column("m:timestamp_start", "number", "start (s)", "when the trial's first process started, UTC epoch seconds"),
    Column("m:timestamp_end", "number", "end (s)", "when its last one had a result or failed, UTC epoch seconds"),
    Column(
        "m:runs",
        "text",
        "runs",
        "start:end of every process of the trial (rungs, further attempts), in order, parted by spaces, UTC epoch "
        "seconds; a trial of one process may leave it out",
    ),
)

_COST = (
    Column("m:wall_seconds", "number", "wall time (s)", "end - start, summed over the trial's processes"),
    Column("m:nodes", "number", "nodes", "nodes that a job of the trial held; 1 where it is missing"),
    Column("m:node_seconds", "number", "node time (s)", "wall time times the nodes that the trial held"),
    Column("m:cpu_seconds", "number", "CPU time (s)", "user and system time of the process and its children"),
    Column("m:peak_memory_bytes", "number", "peak memory (bytes)", "largest resident set of the process or of a child"),
    Column(
        "m:voxels_per_second",
        "number",
        "inference speed (voxels/s)",
        "voxels of the validation box over the seconds of segmenting it, without start-up",
    ),
    Column(
        "m:node_hours_per_gigavoxel",
        "number",
        "cost of deployment (node-hours/Gvoxel)",
        "node-hours that segmenting 10^9 voxels takes at the measured speed",
    ),
    Column(
        "m:flop_per_voxel",
        "number",
        "arithmetic (flop/voxel)",
        "floating point operations of inference per voxel segmented, from the network's layers and counted steps",
    ),
)

_ACCURACY = (
    Column(
        "m:vi",
        "number",
        "VI (bits)",
        "variation of information on the validation box, split + merge; voxels whose truth is 0 are left out; 0 is "
        "perfect; compare with the trivial answers, not with 0 alone",
    ),
    Column("m:vi_split", "number", "VI split (bits)", "H(segmentation | truth): how much objects are split"),
    Column("m:vi_merge", "number", "VI merge (bits)", "H(truth | segmentation): how much objects are merged"),
    Column(
        "m:adapted_rand_error",
        "number",
        "adapted Rand error",
        "1 - F score of voxel pairs, scikit-image's convention: voxels without an object are one segment",
    ),
    Column(
        "m:rand_precision", "number", "Rand precision", "of the pairs put together, the share that belongs together"
    ),
    Column("m:rand_recall", "number", "Rand recall", "of the pairs that belong together, the share put together"),
    Column("m:filled_fraction", "number", "filled", "share of the labelled voxels that some object covers"),
    Column("m:objects", "number", "objects", "objects in the segmented validation box"),
)

_TRAINING = (
    Column("m:loss", "number", "loss", "training loss at the end: sigmoid cross entropy, mean over recent steps"),
    Column("m:accuracy", "number", "training accuracy", "share of voxels on the right side of the threshold"),
    Column("m:precision", "number", "training precision", "of the voxels predicted inside, the share that is"),
    Column("m:recall", "number", "training recall", "of the voxels inside, the share predicted so"),
    Column("m:f1", "number", "training F1", "harmonic mean of training precision and recall"),
    Column("m:fovs_per_second", "number", "training speed (FOV/s)", "fields of view trained on per second"),
    Column("m:steps", "number", "steps", "optimiser steps done"),
    Column("m:parameters", "number", "network parameters", "trainable numbers of the network"),
    Column("m:flop_per_fov", "number", "flop/FOV", "floating point operations of one forward pass"),
    Column(
        "m:inference_steps", "number", "inference steps", "fields of view looked at in segmenting the validation box"
    ),
    Column("m:rejected_seeds", "number", "rejected seeds", "seeds that gave no object"),
    Column("m:truncated", "yes/no", "cut short", "true where the bound on steps ended the validation segmentation"),
    Column("m:segmentation", "text", "segmentation", "OME-Zarr volume of the validation box"),
    Column("m:curves", "text", "learning curves", "CSV file: step, loss, accuracy, precision, recall, f1, seconds"),
    Column("m:checkpoint", "text", "checkpoint", "folder of the trained network"),
)

_FAILURE = (
    Column(
        "m:failure",
        "text",
        "failure",
        "kind: bad_configuration, diverged, hung, no_room, lost_node, walltime, killed, bug; missing where the trial "
        "did not fail",
    ),
    Column("m:failure_message", "text", "what happened", "the message of the failure"),
)

_PROVENANCE = (
    Column("m:code_version", "text", "code version", "version of the installed project"),
    Column("m:configuration_hash", "text", "configuration", "hash of the trial's parameters: equal hash, equal trial"),
    Column("m:seed", "number", "seed", "seed of the campaign"),
    Column("m:data_hash", "text", "data", "hash of the image and label volumes"),
    Column("m:host", "text", "host", "machine that ran the trial"),
)

COLUMNS: dict[str, Column] = {
    column.name: column
    for group in (_IDENTITY, _SEARCH, _TIME, _COST, _ACCURACY, _TRAINING, _FAILURE, _PROVENANCE)
    for column in group
}

_RUNG_OBJECTIVE = re.compile(r"m:(?P<objective>objective(_\d+)?)_rung_(?P<rung>\d+)")
"""`m:objective_rung_2`: the objective that rung 2 reported; `m:objective_1_rung_2` where there are several."""

REQUIRED = ("campaign", "search", "trial", "job_id", "job_status", "attempt", "objective", "m:failure")
"""What a loaded table always has, filled in where the file does not hold it."""


def describe(name: str) -> Column:
    """The documentation of a column; hyperparameters (`p:*`) and several objectives (`objective_0`) included.

    Raises AnalysisError where there is no such column.
    """
    if name in COLUMNS:
        return COLUMNS[name]
    if name.startswith("p:"):
        return Column(name, "any", name[2:].replace("_", " "), "hyperparameter of the trial, of its own type")
    if is_objective(name):
        return Column(name, "number", name.replace("_", " "), "one of several objectives, maximised")
    if rung := _RUNG_OBJECTIVE.fullmatch(name):
        objective = rung["objective"].replace("_", " ")
        return Column(name, "number", f"{objective} at rung {rung['rung']}", f"the {objective} that the rung reported")
    raise AnalysisError(f"{name!r}: no such column; expected p:NAME or one of {', '.join(COLUMNS)}")


def rung_columns(names: Iterable[str], objective: str = "objective") -> dict[int, str]:
    """Rung -> the column of an objective's value there, of those that a table has, in order of rungs."""
    found = {
        int(match["rung"]): name
        for name in names
        if (match := _RUNG_OBJECTIVE.fullmatch(name)) and match["objective"] == objective
    }
    return dict(sorted(found.items()))


def is_objective(name: str) -> bool:
    """True for `objective` and `objective_<number>`."""
    return name == "objective" or (name.startswith("objective_") and name.removeprefix("objective_").isdigit())


def label(name: str) -> str:
    """For table heads and axes; the bare name for columns that are not documented."""
    try:
        return describe(name).label
    except AnalysisError:
        return name.removeprefix("m:").replace("_", " ")
