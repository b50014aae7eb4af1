"""One run of a training: the trainer, and all that is written as it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError, StateError
from apps.core.progress import Reporter
from apps.core.volumes import VoxelSize
from apps.ffn.checkpoint import CheckpointInfo
from apps.ffn.ranks import Ranks
from apps.ffn.summaries import EventFile, TableFile
from apps.ffn.tracker import CURVE_COLUMNS, Row, curve_values
from apps.ffn.trainer import Trainer
from apps.training.evaluation import EVALUATION_COLUMNS, Evaluator, from_row, table_values, to_row
from apps.training.parameters import EvaluationResult, TrainingParameters
from apps.training.saving import read_training, save_training

CHECKPOINT, CURVES, EVALUATIONS, EVENTS, LOCK = "checkpoint", "curves.csv", "evaluations.csv", "events", ".lock"


class Session:
    """What `run` does once everything is checked.  Rank 0 writes; all ranks call everything.

    Attributes:
        trainer: the training in progress.
        evaluations: those done so far.
    """

    def __init__(
        self,
        parameters: TrainingParameters,
        trainer: Trainer,
        evaluator: Evaluator | None,
        ranks: Ranks,
        normalisation: tuple[float, float],
        voxel_size_nm: VoxelSize | None,
        provenance: dict[str, Any],
    ) -> None:
        self.trainer = trainer
        self.evaluations: list[EvaluationResult] = []
        self._parameters, self._evaluator, self._ranks = parameters, evaluator, ranks
        self._normalisation, self._voxel_size_nm, self._provenance = normalisation, voxel_size_nm, provenance
        self._output = Path(parameters.output)

    def restore(self, checkpoint: Path) -> None:
        """Go on from the training's own checkpoint.

        An evaluation that was made only because an earlier run ended there is dropped: what there is at the end is what
        a single run to `steps` leaves.

        Raises DataError where it is damaged, StateError where it is of another number of ranks or past `steps`.
        """
        state, streams = read_training(checkpoint, self._ranks)
        self.trainer.restore(state, streams, str(checkpoint))
        if self.trainer.step > self._parameters.steps:
            raise StateError(
                f"steps = {self._parameters.steps}: {self._output} holds a training of {self.trainer.step} steps; "
                "give another output folder"
            )
        try:
            made = [from_row(row) for row in state["evaluations"]]
        except (KeyError, ValueError) as error:
            raise DataError(f"{checkpoint}: holds evaluations that do not fit ({error}); start again") from error
        self.evaluations = [result for result in made if self._due(result.step)]

    def train(self, report: Reporter) -> None:
        """Train until `steps`, and write tables, events and checkpoints as it goes."""
        trainer, parameters = self.trainer, self._parameters
        self._open_tables()
        if trainer.step == parameters.steps > 0:
            return
        events = EventFile(self._output / EVENTS, trainer.step) if self._ranks.rank == 0 else None
        try:
            if parameters.steps == 0:  # weights are adopted as they are
                if self._due(0) and not self.evaluations:
                    self._evaluate(events, report)
                self._save()
            while trainer.step < parameters.steps:
                row = trainer.train_step()
                if row is not None:
                    self._write_row(row, events)
                if self._due(trainer.step):
                    self._evaluate(events, report)
                if trainer.step == parameters.steps or trainer.step % parameters.checkpoint_every == 0:
                    self._save()
                report(trainer.step, parameters.steps, f"training, loss {trainer.loss:.3f}")
        finally:
            if events is not None:
                events.close()

    def _open_tables(self) -> None:
        if self._ranks.rank != 0:
            return
        self._curves = TableFile(self._output / CURVES, CURVE_COLUMNS, map(curve_values, self.trainer.tracker.rows))
        if self._evaluator:
            rows = map(table_values, self.evaluations)
            self._table = TableFile(self._output / EVALUATIONS, EVALUATION_COLUMNS, rows)

    def _write_row(self, row: Row, events: EventFile | None) -> None:
        if events is None:
            return
        values = curve_values(row)
        self._curves.append(values)
        events.add(self.trainer.step, _scalars("training", CURVE_COLUMNS, values))

    def _due(self, step: int) -> bool:
        evaluation, last = self._parameters.evaluation, self._parameters.steps
        return evaluation is not None and (step == last or (step > 0 and step % evaluation.every == 0))

    def _evaluate(self, events: EventFile | None, report: Reporter) -> None:
        assert self._evaluator is not None
        report(self.trainer.step, self._parameters.steps, "evaluating")
        with self.trainer.averaged():
            result = self._evaluator.evaluate(self.trainer.network, self.trainer.step, self._ranks)
        self.evaluations.append(result)
        if events is not None:
            values = table_values(result)
            self._table.append(values)
            events.add(self.trainer.step, _scalars("evaluation", EVALUATION_COLUMNS, values))

    def _save(self) -> None:
        trainer, (mean, std) = self.trainer, self._normalisation
        info = CheckpointInfo(
            model=trainer.network.model,
            image_mean=mean,
            image_std=std,
            step=trainer.step,
            provenance=self._provenance,
            voxel_size_nm=self._voxel_size_nm,
        )
        rows = np.array([to_row(result) for result in self.evaluations])
        state: dict[str, NDArray[Any]] = {**trainer.state(), "evaluations": rows}
        save_training(self._output / CHECKPOINT, info, trainer.weights(), state, trainer.streams(), self._ranks)


def _scalars(group: str, columns: tuple[str, ...], values: Any) -> dict[str, float | None]:
    """TensorBoard's name -> value, of all columns but the step."""
    return {f"{group}/{name}": value for name, value in zip(columns, values, strict=True) if name != "step"}
