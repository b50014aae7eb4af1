"""The action `segment`: the masks of a section, and their record, which is written last."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from apps.core.boxes import Box, tiles
from apps.core.errors import DataError
from apps.core.files import lock
from apps.core.parameters import json_hash
from apps.core.stage import code_version
from apps.core.volumes import Volume
from apps.ffn.backend import start_tensorflow
from apps.masking.classes import CLASSES, OUTSIDE
from apps.masking.model import load_model
from apps.masking.records import Paths, SectionRecord, load_record
from apps.masking.scoring import Certainty
from apps.masking.sections import SectionStatistics, read_statistics
from apps.masking.segmenter import Segmenter

NOTHING_SHOWN = "shows nothing: every pixel is 0"


class Masker:
    """A model, and the image and masks that it goes over section by section.

    Attributes:
        seconds: what masking took, reading and writing included, the start of the network not.
    """

    def __init__(
        self, image: Volume, masks: Volume, paths: Paths, model: Path, tile: int, overlap: int | None, threads: int
    ) -> None:
        """Raises DataError where there is no such model, or it is damaged."""
        self._image, self._masks, self._paths = image, masks, paths
        self._model = load_model(model)
        self._tile, self._overlap, self._threads = tile, overlap, threads
        self._segmenter: Segmenter | None = None
        self.seconds = 0.0

    def mask(self, section: int, plane: int) -> tuple[SectionRecord, bool]:
        """The record of a section, and whether it was made now: one of the same pixels and model is kept.

        Raises StateError where another process works on the section.
        """
        statistics = read_statistics(self._image, plane)
        identity = json_hash(
            [statistics.digest, self._model.info.checksum, self._tile, self._overlap, plane, code_version()]
        )
        file = self._paths.record(section)
        known = load_record(file)
        if known is not None and known.identity == identity:
            return known, False
        lock_file = file.with_suffix(".lock")
        with lock_file.open("a") as held:
            lock(held, lock_file)
            file.unlink(missing_ok=True)  # what it says is about to be wrong
            network = self._network() if statistics.tissue else None
            begin = time.perf_counter()
            record = self._make(section, plane, identity, statistics, network)
            record.save(file)
            self.seconds += time.perf_counter() - begin
        return record, True

    def _make(
        self, section: int, plane: int, identity: str, statistics: SectionStatistics, network: Segmenter | None
    ) -> SectionRecord:
        whole = Box.of((plane, 0, 0), (1, *self._image.shape[1:]))
        counts, certainty = np.zeros(len(CLASSES), np.int64), Certainty()
        for chunk in tiles(whole, self._masks.array.chunks):
            masks = np.full(chunk.shape, OUTSIDE, np.uint8)
            if network is not None:
                for part in network.segment(self._image, chunk, statistics, certainty):
                    masks[part.box.slices(chunk.offset)] = part.classes
            self._masks.write(chunk, masks)
            counts += np.bincount(masks.ravel(), minlength=len(CLASSES))
        shares = (counts / whole.size).round(6).tolist()
        return SectionRecord(
            section=section,
            plane=plane,
            identity=identity,
            fractions=dict(zip(CLASSES, shares, strict=True)),
            expected_dice=certainty.expected_dice,
            entropy=certainty.entropy,
            boundary_sharpness=certainty.sharpness,
            faults=() if statistics.tissue else (NOTHING_SHOWN,),
        )

    def _network(self) -> Segmenter:
        """The network, started when the first section needs it."""
        if self._segmenter is None:
            start_tensorflow(self._threads)
            info = self._model.info
            try:
                self._segmenter = Segmenter(info.network, self._model.weights, self._tile, self._overlap)
            except DataError as error:
                raise DataError(f"model: {error}") from error
        return self._segmenter
