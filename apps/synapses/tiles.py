"""The phases `detect` and `join`: probabilities and components tile by tile, then the clefts of the whole volume."""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.files import file_in_the_making
from apps.core.parameters import json_hash
from apps.core.parts import Part, share
from apps.core.progress import Reporter
from apps.core.stage import code_version
from apps.core.volumes import Volume
from apps.ffn.backend import start_tensorflow
from apps.synapses.components import NAMES, Components, find_components, join
from apps.synapses.detector import FULL, Detector, margin_of, read_window
from apps.synapses.images import measure
from apps.synapses.model import Model
from apps.synapses.records import Paths, prepare_volume, read_record, text_of, tiles_of


class TileWork:
    """An image, and the tiles that clefts are looked for in."""

    def __init__(
        self,
        image: Volume,
        model: Model,
        paths: Paths,
        tile: Triple,
        overlap: int | None,
        threshold: float,
        threads: int,
    ) -> None:
        self._image, self._model, self._paths, self._threads = image, model, paths, threads
        self.grid = tiles_of(image, tile)
        self._margin = margin_of(model.info.network, overlap)
        self._statistics = measure(image)
        self._threshold = max(1, round(threshold * FULL))
        settings = [tile, self._margin, self._statistics.mean, self._statistics.std, image.shape]
        self._network_plan = json_hash([model.info.checksum, *settings, code_version()])
        self._plan = json_hash([self._network_plan, self._threshold])

    def detect(self, part: Part | None, report: Reporter) -> int:
        """Do the tiles of a part that are not done yet; returns how many those were.

        Raises StateError where the folder holds another image's probabilities.
        """
        volumes = [
            prepare_volume(self._paths.volume(output), self._image, self.grid.shape)
            for output in self._model.info.outputs
        ]
        numbers = share(len(self.grid), part)
        made = 0
        for done, number in enumerate(numbers):
            report(done, len(numbers), "looking for clefts")
            made += self._detect(number, volumes)
        report(len(numbers), len(numbers), "looking for clefts")
        return made

    def _detect(self, number: int, volumes: list[Volume]) -> bool:
        tile = self.grid.subvolume(number).write_box
        window = read_window(self._image, tile, self._model.info.network.unit, self._margin)
        network = json_hash([self._network_plan, hashlib.sha256(window.tobytes()).hexdigest()])
        file = self._paths.tile(number)
        record = read_record(file)
        if text_of(record, "network") == network and text_of(record, "plan") == self._plan:
            return False
        for stale in (self._paths.table, self._paths.components):  # what these say is about to be wrong
            stale.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        if text_of(record, "network") == network:
            clefts = volumes[0].read(tile)
        else:
            file.unlink(missing_ok=True)
            probabilities = self._detector.detect(window, tile, self._statistics)
            for volume, found in zip(volumes, probabilities, strict=True):
                volume.write(tile, found)
            clefts = probabilities[0]
        components = find_components(clefts, self._threshold, tile, self._image.shape)
        components.save(file, network=network, plan=self._plan)
        return True

    @cached_property
    def _detector(self) -> Detector:
        start_tensorflow(self._threads)
        info = self._model.info
        return Detector(info.network, len(info.outputs), self._model.weights, self._margin)

    def join(self, min_voxels: int, max_voxels: int, report: Reporter) -> tuple[int, int]:
        """Put the tiles' components together, and keep those of a size: (how many those are, how many were too large).

        Raises DataError that names a tile that is missing or damaged, or was made with other parameters.
        """
        count = len(self.grid)
        digest = hashlib.sha256(f"{self._plan} {min_voxels} {max_voxels}".encode())

        def load(number: int) -> Components:
            record = self._record(number)
            digest.update(text_of(record, "network").encode())
            return Components(**{name: record[name] for name in NAMES})

        @lru_cache(maxsize=256)
        def face(number: int, side: int) -> NDArray[np.uint32]:
            labels: NDArray[np.uint32] = self._record(number)[f"face{side}"]
            return labels

        found = join(self.grid.counts, load, face, lambda done: report(done, count, "joining clefts"))
        too_large = found.voxels > max_voxels
        kept = found.take((found.voxels >= min_voxels) & ~too_large)
        identity = digest.hexdigest()[:32]
        if text_of(read_record(self._paths.components), "identity") != identity:
            self._paths.table.unlink(missing_ok=True)
        self._paths.components.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {**kept.arrays(), "identity": np.array(identity)}
        arrays["too_large"] = np.array(int(too_large.sum()))
        arrays["threshold"] = np.array(self._threshold)
        with file_in_the_making(self._paths.components) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        return len(kept), int(too_large.sum())

    def _record(self, number: int) -> dict[str, NDArray[Any]]:
        record = read_record(self._paths.tile(number))
        if record is None or text_of(record, "plan") != self._plan:
            box: Box = self.grid.subvolume(number).write_box
            why = "is missing or damaged" if record is None else "was made with another model or other parameters"
            raise DataError(f"{self._paths.output}: tile {number} ({box}) {why}; run the action detect again")
        return record
