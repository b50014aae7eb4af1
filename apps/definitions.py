"""Every stage as a Balsam application: one ApplicationDefinition a stage, all of one shape.

The command is `python -m apps.<stage> parameters.json` in the job's work directory.  `preprocess` writes that file from
`job.data["parameters"]` (or leaves the one that the user put there), `postprocess` sets what the stage wrote to
`result.json` as `job.data["record"]`, and `handle_error` sets `job.data["failure"]` (kinds: apps/core/errors.py).
Large data never travels through Balsam: parameters and records hold paths.

    from apps.definitions import register
    register(site_id)                      # makes or updates the applications of a site
    $ balsam job create --site NAME --app Training --workdir demo/t1 -p parameters=/path/to/parameters.json

A job's parameter `time_limit` (seconds, anew for every start) ends a process that takes longer, as `hung`.  Its
`data["max_attempts"]` says how often a job is started whose process the machine has ended (MAX_ATTEMPTS where it is
missing): 1 for whoever decides about further attempts, and waits before them, as the driver of a search does.  The
kinds of failure after which it was started again stand in `data["interruptions"]`, in order.

A training, and a trial, may have several ranks: the job's `num_nodes` times its `ranks_per_node` (`--num-nodes 2
--ranks-per-node 4`), which the launcher starts through the site's MPI.  Every other stage is the work of one process
and refuses to be more.

Balsam stores these classes by reference (module and name): agents and launchers import them from their own environment.
To add a stage: write its module, add it to `STAGES` in apps/core/stage.py and a class here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from balsam.api import ApplicationDefinition

from apps.core.errors import FailureKind, NoRoomError
from apps.core.exits import exit_words
from apps.core.stage import FAILURE_FILE, RESULT_FILE
from apps.core.time_limit import hung_message, parse_time_limit, remove_traces, was_ended

PARAMETERS_FILE = "parameters.json"
NO_LIMIT = "0"
# How often a job is started whose process was killed, and how many launchers may end under one (a long training needs
# several; a job that takes its launcher down must not go on for ever).
MAX_ATTEMPTS = 3
MAX_LAUNCHERS = 50
# What Balsam's server says of a job that it takes back from a launcher which is gone.
EXPIRED = "Session expired"
PYTHON = sys.executable

# `site` is Balsam's required attribute; `register` sets the real one before it speaks to the server.
UNREGISTERED = 0

PARAMETERS = {
    "parameters": {
        "required": False,
        "default": PARAMETERS_FILE,
        "help": "JSON file with the stage's parameters; the default is written from the job's data['parameters']",
    },
    "time_limit": {
        "required": False,
        "default": NO_LIMIT,
        "help": "seconds after which the process is ended, as hung; 0 for none",
    },
}


class StageHooks:
    """What happens around the command, in the site's agent, with the job's work directory as current directory."""

    job: Any

    def preprocess(self) -> None:
        """Write `parameters.json` from the job's data where it holds parameters."""
        parameters = self.job.data.get("parameters")
        if parameters is not None:
            Path(PARAMETERS_FILE).write_text(json.dumps(parameters, indent=2))
        Path(FAILURE_FILE).unlink(missing_ok=True)
        remove_traces(Path.cwd())
        self.job.state = "PREPROCESSED"

    def postprocess(self) -> None:
        """Set the job's record from `result.json`; without that file the job failed, whatever its exit code."""
        file = self._folder() / RESULT_FILE
        if not file.is_file():
            self._fail(FailureKind.BUG, f"the command ended with exit code 0 but wrote no {RESULT_FILE}")
            return
        self._set(record=json.loads(file.read_text()))
        self.job.state = "POSTPROCESSED"

    def handle_error(self) -> None:
        """Record the failure's kind; a process that the machine ended is run again, a bounded number of times."""
        file = self._folder() / FAILURE_FILE
        attempts = int(self.job.data.get("max_attempts", MAX_ATTEMPTS))
        if file.is_file():
            failure = json.loads(file.read_text())
            kind = FailureKind(failure["kind"])
            if kind.transient:
                self._run_again("attempts", attempts, kind, failure["message"])
            else:
                self._fail(kind, failure["message"])
            return
        trace = was_ended(file.parent)
        if trace is not None:
            limit = parse_time_limit(str(self.job.get_parameters().get("time_limit", NO_LIMIT)))
            self._fail(FailureKind.HUNG, hung_message(limit, trace))
            return
        if self._last_end("RUN_ERROR").get("returncode") == NoRoomError.exit_code:
            self._fail(FailureKind.NO_ROOM, f"a disk is full, and has no room for {FAILURE_FILE} in {file.parent}")
            return
        message = f"the process ended{self._how()} without a result and without naming a failure"
        self._run_again("attempts", attempts, FailureKind.KILLED, message)

    def handle_timeout(self) -> None:
        """The launcher ended under the job: run it again, it resumes by itself.

        One whose time was over, or that was told to end, has said so; of one that was lost with its node the server
        takes the job back.
        """
        if self._taken_back():
            kind, message = FailureKind.LOST_NODE, "the launcher was lost, and the job with it"
        else:
            kind, message = FailureKind.WALLTIME, "the launcher ended before the job did"
        self._run_again("launchers", MAX_LAUNCHERS, kind, message)

    def _taken_back(self) -> bool:
        """Whether the server ended the job's last run, because nobody held the lease on it any more."""
        return str(self._last_end("RUN_TIMEOUT").get("message", "")).startswith(EXPIRED)

    def _how(self) -> str:
        """By which signal or with which exit code the last run ended, as the launcher saw it; empty where none did."""
        code = self._last_end("RUN_ERROR").get("returncode")
        return f" with {exit_words(code)}," if isinstance(code, int) else ""

    def _last_end(self, state: str) -> dict[str, Any]:
        """What Balsam's log says of the last run that ended in `state`."""
        from balsam.api import EventLog

        ends = EventLog.objects.filter(job_id=self.job.id, to_state=state)
        last = max(ends, key=lambda event: event.id, default=None)
        return {} if last is None else dict(last.data)

    def _run_again(self, counter: str, limit: int, kind: FailureKind, message: str) -> None:
        tried = int(self.job.data.get(counter, 1))
        if self.job.data.get("cancelled"):
            self._fail(kind, f"{message}; it was cancelled")
            return
        if tried >= limit:
            self._fail(kind, f"{message}; tried {tried} times, see job.out in {Path.cwd()}")
            return
        interruptions = [*self.job.data.get("interruptions", []), kind.value]
        self._set(**{counter: tried + 1, "interruptions": interruptions})
        self.job.state = "RESTART_READY"

    def _fail(self, kind: FailureKind, message: str) -> None:
        self._set(failure={"kind": kind.value, "message": message})
        self.job.state = "FAILED"

    def _set(self, **entries: Any) -> None:
        self.job.data = {**self.job.data, **entries}

    def _folder(self) -> Path:
        """Where the stage wrote its result: beside the parameters file."""
        parameters = self.job.get_parameters().get("parameters", PARAMETERS_FILE)
        return Path(parameters).resolve().parent


def _command(stage: str) -> str:
    # -P: what lies in the work directory is never imported.
    return f"{PYTHON} -P -m apps.{stage} {{{{ parameters }}}} --time-limit {{{{ time_limit }}}}"


class Phantom(StageHooks, ApplicationDefinition):
    """Generate an EM-like volume with ground truth."""

    site = UNREGISTERED
    command_template = _command("phantom")
    parameters = PARAMETERS


class Montage(StageHooks, ApplicationDefinition):
    """Put the overlapping tiles of sections together."""

    site = UNREGISTERED
    command_template = _command("montage")
    parameters = PARAMETERS


class Alignment(StageHooks, ApplicationDefinition):
    """Align the sections of a montage into one volume."""

    site = UNREGISTERED
    command_template = _command("alignment")
    parameters = PARAMETERS


class Masking(StageHooks, ApplicationDefinition):
    """Mask vessels, cell bodies and what is no tissue, or train the network that does."""

    site = UNREGISTERED
    command_template = _command("masking")
    parameters = PARAMETERS


class Audit(StageHooks, ApplicationDefinition):
    """Compare what stages made of a phantom's tiles with the truth."""

    site = UNREGISTERED
    command_template = _command("audit")
    parameters = PARAMETERS


class Ingest(StageHooks, ApplicationDefinition):
    """Check an image volume (and labels) and store it as OME-Zarr."""

    site = UNREGISTERED
    command_template = _command("ingest")
    parameters = PARAMETERS


class Partition(StageHooks, ApplicationDefinition):
    """Sample training coordinates, balanced over object fractions."""

    site = UNREGISTERED
    command_template = _command("partition")
    parameters = PARAMETERS


class Training(StageHooks, ApplicationDefinition):
    """Train one FFN variant."""

    site = UNREGISTERED
    command_template = _command("training")
    parameters = PARAMETERS


class Inference(StageHooks, ApplicationDefinition):
    """Segment one subvolume with a trained FFN."""

    site = UNREGISTERED
    command_template = _command("inference")
    parameters = PARAMETERS


class Trial(StageHooks, ApplicationDefinition):
    """One trial of a search: train a variant, segment the validation box, score it."""

    site = UNREGISTERED
    command_template = _command("trial")
    parameters = PARAMETERS


class Reconciliation(StageHooks, ApplicationDefinition):
    """Merge the segmentations of overlapping subvolumes into one volume."""

    site = UNREGISTERED
    command_template = _command("reconciliation")
    parameters = PARAMETERS


class Connectome(StageHooks, ApplicationDefinition):
    """Join synapses into the wiring graph of neurons: tables, GraphML, measures."""

    site = UNREGISTERED
    command_template = _command("connectome")
    parameters = PARAMETERS


class Consensus(StageHooks, ApplicationDefinition):
    """Keep what two segmentations of the same subvolumes agree on."""

    site = UNREGISTERED
    command_template = _command("consensus")
    parameters = PARAMETERS


class Agglomeration(StageHooks, ApplicationDefinition):
    """Join objects that the network joins when it looks again where they touch."""

    site = UNREGISTERED
    command_template = _command("agglomeration")
    parameters = PARAMETERS


class Synapses(StageHooks, ApplicationDefinition):
    """Find synapses with a 3-D U-Net, and their partners in a segmentation."""

    site = UNREGISTERED
    command_template = _command("synapses")
    parameters = PARAMETERS


class Evaluation(StageHooks, ApplicationDefinition):
    """Score a segmentation against ground truth, beside the trivial answers."""

    site = UNREGISTERED
    command_template = _command("evaluation")
    parameters = PARAMETERS


class Interchange(StageHooks, ApplicationDefinition):
    """Convert segmentations, volumes and checkpoints from and to google/ffn's files."""

    site = UNREGISTERED
    command_template = _command("interchange")
    parameters = PARAMETERS


class Multiscale(StageHooks, ApplicationDefinition):
    """Give a volume coarser levels for viewing."""

    site = UNREGISTERED
    command_template = _command("multiscale")
    parameters = PARAMETERS


class Meshes(StageHooks, ApplicationDefinition):
    """Make meshes of a segmentation's objects."""

    site = UNREGISTERED
    command_template = _command("meshes")
    parameters = PARAMETERS


class Skeletons(StageHooks, ApplicationDefinition):
    """Make skeletons of a segmentation's objects."""

    site = UNREGISTERED
    command_template = _command("skeletons")
    parameters = PARAMETERS


class Precomputed(StageHooks, ApplicationDefinition):
    """Write a volume and its levels as neuroglancer precomputed."""

    site = UNREGISTERED
    command_template = _command("precomputed")
    parameters = PARAMETERS


class Simulation(StageHooks, ApplicationDefinition):
    """A job that takes time and a fate instead of doing anything, for trying out searches and sites."""

    site = UNREGISTERED
    command_template = _command("simulation")
    parameters = PARAMETERS


APPLICATIONS: dict[str, type[ApplicationDefinition]] = {
    "phantom": Phantom,
    "montage": Montage,
    "alignment": Alignment,
    "masking": Masking,
    "audit": Audit,
    "ingest": Ingest,
    "partition": Partition,
    "training": Training,
    "inference": Inference,
    "consensus": Consensus,
    "trial": Trial,
    "reconciliation": Reconciliation,
    "agglomeration": Agglomeration,
    "connectome": Connectome,
    "synapses": Synapses,
    "evaluation": Evaluation,
    "interchange": Interchange,
    "multiscale": Multiscale,
    "meshes": Meshes,
    "skeletons": Skeletons,
    "precomputed": Precomputed,
    "simulation": Simulation,
}


def register(site_id: int) -> dict[str, int]:
    """Make or update every application at the site; returns stage name -> Balsam application id."""
    ids = {}
    for stage, application in APPLICATIONS.items():
        application.site = site_id
        application._site_id = site_id
        application.sync()
        ids[stage] = int(application.__app_id__)
    return ids
