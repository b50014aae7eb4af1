"""The flood log: what a segmentation found out about seed after seed, so that a killed one goes on from there.

A file that is only appended to.  After a line of JSON with the identity of the segmentation come records: length and
CRC-32 of the payload (little-endian uint32 each), then the payload.  A record that a kill cut short ends the log: what
follows the last whole one is cut off, and that seed is flooded again.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.files import lock
from apps.ffn.segmenter import Outcome

_HEAD = struct.Struct("<II")
_FORMAT = 1


class FloodLog:
    """Open for the segmentation called `identity`; a log of another one is begun anew."""

    def __init__(self, path: Path, identity: str) -> None:
        """Raises DataError where the place is not writable, StateError where another process has the log open."""
        self.path = path
        header = json.dumps({"format": _FORMAT, "identity": identity}).encode() + b"\n"
        try:
            # Without a buffer: what has no room on the disk would be left in it.
            self._stream = path.open("a+b", buffering=0)
            lock(self._stream, path)
            self._stream.seek(0)
            self._records, self._end = _read(self._stream.readall(), header)
            self._stream.truncate(self._end)
            if not self._end:
                self._write(header)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error}); give a writable place") from error

    def outcomes(self) -> Iterator[Outcome]:
        """What was there when the log was opened, in order."""
        return map(_decode, self._records)

    def append(self, outcome: Outcome) -> None:
        """Write one record.  It outlives the process at once."""
        payload = _encode(outcome)
        try:
            self._write(_HEAD.pack(len(payload), zlib.crc32(payload)) + payload)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror or error}); free some space") from error

    def _write(self, data: bytes) -> None:
        """Write all of it; where that cannot be, nothing: a record that is cut short would hide those after it."""
        try:
            left = memoryview(data)
            while left:
                left = left[self._stream.write(left) :]  # a disk with little room takes a part, and then none
        except OSError:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._end)
            raise
        self._end += len(data)

    def close(self) -> None:
        self._stream.close()

    def remove(self) -> None:
        """The segmentation is stored elsewhere: the log is not needed any more."""
        self.close()
        self.path.unlink(missing_ok=True)


def _read(data: bytes, header: bytes) -> tuple[list[bytes], int]:
    """The whole records after `header`, and where the last of them ends; nothing and 0 under another header."""
    if not data.startswith(header):
        return [], 0
    records, place = [], len(header)
    while place + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, place)
        payload = data[place + _HEAD.size : place + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            break
        records.append(payload)
        place += _HEAD.size + length
    return records, place


def _encode(outcome: Outcome) -> bytes:
    return msgspec.msgpack.encode(
        {
            "seed": outcome.seed,
            "steps": outcome.steps,
            "weak": outcome.weak,
            "voxels": outcome.voxels,
            "box": outcome.box.to_dict(),
            "mask": None if outcome.mask is None else zlib.compress(np.packbits(outcome.mask).tobytes(), 1),
            "probability": None if outcome.probability is None else zlib.compress(outcome.probability.tobytes(), 1),
        }
    )


def _decode(payload: bytes) -> Outcome:
    fields: dict[str, Any] = msgspec.msgpack.decode(payload)
    box = Box.from_json(fields["box"])
    mask: NDArray[np.bool_] | None = None
    probability: NDArray[np.uint8] | None = None
    if fields["mask"] is not None:
        bits = np.frombuffer(zlib.decompress(fields["mask"]), np.uint8)
        mask = np.unpackbits(bits, count=box.size).astype(bool).reshape(box.shape)
    if fields["probability"] is not None:
        probability = np.frombuffer(zlib.decompress(fields["probability"]), np.uint8).reshape(box.shape)
    return Outcome(fields["seed"], fields["steps"], fields["weak"], fields["voxels"], box, mask, probability)
