"""Action `score`: the decision points of every block, and what the network finds when it looks again there.

The unit is a block.  It leaves two tables: `NUMBER-voxels.parquet` (id, voxels of the block) and last
`NUMBER.parquet` (its decision points with their scores), whose metadata say what they hang on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import fastremap
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.agglomeration.contacts import DecisionPoints, find_decision_points, surroundings
from apps.agglomeration.inputs import Inputs
from apps.agglomeration.reflooding import PairScore, Rules, Window, score_pairs, window_box
from apps.agglomeration.stamps import stamp
from apps.agglomeration.tables import edge_table, read_marks, unit_path, write_table
from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Result, json_hash
from apps.core.parts import Part, share
from apps.core.progress import Reporter
from apps.core.stage import code_version
from apps.core.volumes import Volume, content_hash, open_volume
from apps.ffn.canvas import Array, Canvas
from apps.ffn.checkpoint import weights_digest
from apps.ffn.masks import read_masks
from apps.inference.segment import Options, inference_network, make_canvas, normalise

if TYPE_CHECKING:
    import pyarrow as pa

EDGES, VOXELS, STAMP = ".parquet", "-voxels.parquet", "-stamp.json"
PLAN, CONTENT = "agglomeration.plan", "agglomeration.content"


class Stamp(Result, frozen=True, kw_only=True):
    """What the voxels of a block were when their files had these sizes and times."""

    stamp: Annotated[str, Meta(description="of the files")]
    content: Annotated[str, Meta(description="hash of the voxels")]


@dataclass(frozen=True)
class ScoreShare:
    """What one job did of the blocks: how many there were in its share, and how many it made."""

    blocks: int
    made: int


@dataclass
class Scorer:
    """Scores blocks; the network starts with the first pair that is to be looked at."""

    inputs: Inputs

    @property
    def folder(self) -> Path:
        return self.inputs.parameters.work_folder / "score"

    @cached_property
    def plan(self) -> str:
        """Hash of what all blocks' scores depend on, but for the voxels."""
        inputs = self.inputs
        checkpoint, parameters = inputs.checkpoint, inputs.parameters
        return json_hash(
            [
                parameters.scoring,
                [mask.to_dict() for mask in parameters.masks],
                inputs.segmentation.shape,
                inputs.voxel_size,
                checkpoint.model.to_dict(),
                parameters.normalisation(checkpoint),
                weights_digest(checkpoint.weights),
                code_version(),
            ]
        )

    def run(self, part: Part | None, report: Reporter) -> ScoreShare:
        """Score the blocks of a part that are not there yet."""
        numbers = share(len(self.inputs.blocks), part)
        _ = self.inputs.image, self.plan  # what cannot work is an error now
        made = 0
        for done, number in enumerate(numbers):

            def tell(share_of_block: float, done: int = done) -> None:
                report(done + share_of_block, len(numbers), "looking again where objects touch")

            tell(0)
            content = self.content(number)
            if self.marks(number) == (self.plan, content):
                continue
            self.make(number, content, tell)
            made += 1
        return ScoreShare(len(numbers), made)

    def marks(self, number: int) -> tuple[str | None, str | None]:
        """(plan, content) of a block's record; of (None, None) where there is none."""
        if not unit_path(self.folder, number, VOXELS).is_file():
            return None, None
        marks = read_marks(unit_path(self.folder, number, EDGES))
        return marks.get(PLAN), marks.get(CONTENT)

    def content(self, number: int) -> str:
        """Hash of the voxels that a block's scores depend on; they are not read again while nobody writes to them."""
        seen = self.seen(self.inputs.blocks[number])
        parts = self._parts(seen)
        now = json_hash([str(seen), *(stamp(volume, box) for volume, box in parts)])
        path = unit_path(self.folder, number, STAMP)
        with contextlib.suppress(DataError, ParameterError):
            known = Stamp.load(path)
            if known.stamp == now:
                return known.content
        content = json_hash([content_hash(volume, box) for volume, box in parts])
        path.parent.mkdir(parents=True, exist_ok=True)
        Stamp(stamp=now, content=content).save(path)
        return content

    def _parts(self, seen: Box) -> list[tuple[Volume, Box]]:
        """The volumes, and the boxes of them, that `seen` is read from."""
        inputs, own = self.inputs, seen.translate(self.inputs.parameters.offset)
        masks = [open_volume(mask.volume) for mask in inputs.parameters.masks]
        return [(inputs.segmentation, seen), *((volume, own) for volume in (inputs.image, *masks))]

    def seen(self, block: Box) -> Box:
        """What a block's scores can depend on: its surroundings, and all windows around points in it."""
        parameters, bounds = self.inputs.parameters, self.inputs.segmentation.box
        z, y, x = parameters.radius
        around = self._read_box(block)
        windows = [window_box(corner, (z, y, x), bounds) for corner in (block.offset, _last(block))]
        low = np.min([around.offset, *(window.offset for window in windows)], axis=0)
        high = np.max([around.end, *(window.end for window in windows)], axis=0)
        return Box.between(_triple(low), _triple(high))

    def make(self, number: int, content: str, tell: Callable[[float], None]) -> None:
        """Score a block, and write its tables; the record goes first, as it must not speak for what is new."""
        block, bounds = self.inputs.blocks[number], self.inputs.segmentation.box
        edges_file = unit_path(self.folder, number, EDGES)
        edges_file.unlink(missing_ok=True)
        write_table(unit_path(self.folder, number, VOXELS), self._count(block))
        points = self._points(block)
        windows = [window_box(_triple(point), self.inputs.parameters.radius, bounds) for point in points.point]
        scores = self._score(points, windows, tell)
        write_table(edges_file, edge_table(points, windows, scores), {PLAN: self.plan, CONTENT: content})

    def _count(self, block: Box) -> pa.Table:
        import pyarrow as pa

        ids, voxels = fastremap.unique(self._labels(block), return_counts=True)
        return pa.table({"id": ids[ids != 0].astype(np.uint64), "voxels": voxels[ids != 0].astype(np.int64)})

    def _labels(self, box: Box) -> NDArray[Any]:
        """The ids of a box of the segmentation.  Raises DataError where one is negative: objects have ids from 1 on."""
        segmentation = self.inputs.segmentation
        labels = segmentation.read(box)
        if labels.dtype.kind == "i" and (low := int(labels.min())) < 0:
            raise DataError(f"{segmentation.name}: holds the id {low} in {box}; expected ids from 1 on, and 0 for none")
        return labels

    def _points(self, block: Box) -> DecisionPoints:
        segmentation, parameters = self.inputs.segmentation, self.inputs.parameters
        read, region = self._read_box(block), surroundings(block, parameters.radius, segmentation.box)
        labels = self._labels(read)
        return find_decision_points(labels, read, region, block, parameters.reach, self.inputs.voxel_size)

    def _read_box(self, block: Box) -> Box:
        parameters, bounds = self.inputs.parameters, self.inputs.segmentation.box
        margin = math.ceil(parameters.reach)
        region = surroundings(block, parameters.radius, bounds)
        return region.grow((margin, margin, margin)).intersection(bounds)

    def _score(self, points: DecisionPoints, windows: list[Box], tell: Callable[[float], None]) -> list[PairScore]:
        """Look again at every decision point; what all windows cover is read once."""
        if not windows:
            return []
        inputs, offset = self.inputs, self.inputs.parameters.offset
        low, high = (np.array([getattr(window, name) for window in windows]) for name in ("offset", "end"))
        whole = Box.between(_triple(low.min(axis=0)), _triple(high.max(axis=0)))
        labels = self._labels(whole)
        excluded = read_masks(inputs.parameters.masks, whole.translate(offset))
        image = inputs.image.read(whole.translate(offset))
        mean_and_std = inputs.parameters.normalisation(inputs.checkpoint)
        looked_at = [
            Window(
                window,
                labels[window.slices(whole.offset)],
                None if excluded is None else excluded[window.slices(whole.offset)],
                a,
                b,
            )
            for window, a, b in zip(windows, points.a.tolist(), points.b.tolist(), strict=True)
        ]

        def read_image(box: Box) -> Array:
            return normalise(image[box.slices(whole.offset)], mean_and_std)

        return score_pairs(looked_at, read_image, self._canvas, inputs.checkpoint.model, self._rules, tell)

    @property
    def _rules(self) -> Rules:
        parameters = self.inputs.parameters
        return Rules(parameters.settings, self.inputs.voxel_size, parameters.min_voxels, parameters.stop_below)

    @cached_property
    def _canvas(self) -> Canvas:
        """One for all blocks: a window is of the same size everywhere."""
        parameters, checkpoint = self.inputs.parameters, self.inputs.checkpoint
        network = inference_network(checkpoint, parameters.settings, parameters.threads)
        options = Options(canvas=parameters.canvas, batch=parameters.batch)
        z, y, x = parameters.radius
        window = Box.of((0, 0, 0), (2 * z + 1, 2 * y + 1, 2 * x + 1))
        return make_canvas(network, parameters.settings, options, [window] * 2 * parameters.batch)


def _triple(values: NDArray[np.int64]) -> Triple:
    z, y, x = (int(value) for value in values)
    return z, y, x


def _last(block: Box) -> Triple:
    z, y, x = block.end
    return z - 1, y - 1, x - 1
