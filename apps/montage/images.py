"""Tile images: decoded TIFF and PNG, kept in a cache of bounded size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError

Tile = NDArray[Any]  # uint8 or uint16 [y, x]

_TIFF = (".tif", ".tiff")


class NotGreyError(DataError):
    """The image is whole, but not one grey plane of 8 or 16 bits."""


def read_tile(file: Path) -> Tile:
    """The image as uint8 or uint16 [y, x].

    Raises FileNotFoundError where there is none, DataError where it cannot be decoded to its end, NotGreyError where it
    is a colour image, a stack, or of another type.
    """
    if not file.is_file():
        raise FileNotFoundError(file)
    # Decoders raise whatever a damaged file leads them to: of libraries, zlib, struct, numpy.
    try:
        image = _read_tiff(file) if file.suffix.lower() in _TIFF else _read_other(file)
    except Exception as error:
        raise DataError(f"{file}: cannot be decoded ({type(error).__name__}: {error})") from error
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16) or image.size == 0:
        raise NotGreyError(f"{file}: is {image.dtype} of shape {image.shape}; expected one grey plane of 8 or 16 bits")
    return image


def _read_tiff(file: Path) -> Tile:
    import tifffile

    with tifffile.TiffFile(file) as stream:
        image = np.asarray(stream.asarray())
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _read_other(file: Path) -> Tile:
    from PIL import Image

    with Image.open(file) as stream:
        image = np.asarray(stream)
        # Pillow gives 16-bit grey PNG in a wider type where it is older than its mode "I;16".
        return image.astype(np.uint16) if stream.mode == "I" and image.max(initial=0) < 2**16 else image


class TileReader:
    """Reads tiles through a cache of the last ones used; threads may share it.

    It never holds more than `bound_bytes` of decoded images besides those that a caller still works on.
    """

    def __init__(self, bound_bytes: int) -> None:
        self._bound = bound_bytes
        self._held = 0
        self._tiles: OrderedDict[Path, Tile] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[Path, threading.Lock] = {}

    def read(self, file: Path) -> Tile:
        """As `read_tile`; do not write into what it returns."""
        with self._lock:
            found = self._take(file)
            if found is not None:
                return found
            own = self._reading.setdefault(file, threading.Lock())
        with own:  # two threads that want one tile: the second waits for the first
            with self._lock:
                found = self._take(file)
            if found is not None:
                return found
            try:
                image = read_tile(file)
                with self._lock:
                    self._keep(file, image)
            finally:
                with self._lock:
                    self._reading.pop(file, None)
        return image

    def _take(self, file: Path) -> Tile | None:
        if file in self._tiles:
            self._tiles.move_to_end(file)
        return self._tiles.get(file)

    def _keep(self, file: Path, image: Tile) -> None:
        if image.nbytes > self._bound or file in self._tiles:
            return
        self._tiles[file] = image
        self._held += image.nbytes
        while self._held > self._bound:
            _, dropped = self._tiles.popitem(last=False)
            self._held -= dropped.nbytes
