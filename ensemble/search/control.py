"""What a running search is asked to do, in a file that its driver looks at: so it can be changed while it runs.

The driver writes `control.json` into the search's folder when it begins, `ensemble search resize` changes it, and the
driver takes the new numbers up at its next decision.  The next driver begins with what its own command says.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parameters import write_json
from ensemble.search.driver import Limits

log = logging.getLogger(__name__)

CONTROL_FILE = "control.json"


@dataclass(frozen=True)
class Orders:
    """The content of the file: how many workers at a time, how many trials in all, and when the driver began (UTC)."""

    workers: int
    trials: int
    begun: float


def read_orders(folder: Path) -> Orders | None:
    """What the driver of the search in `folder` is asked to do; None before one has begun.

    Raises DataError where the file holds something else.
    """
    file = folder / CONTROL_FILE
    try:
        found = json.loads(file.read_bytes())
        return Orders(int(found["workers"]), int(found["trials"]), float(found["begun"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: does not hold workers, trials and begun ({error}); remove it and start the driver again"
        ) from error


def change_orders(folder: Path, workers: int | None = None, trials: int | None = None) -> Orders:
    """Ask the driver for so many workers or trials from now on; returns all that it is asked for.

    Raises StateError where no driver has begun, ParameterError where nothing is asked or a number is not positive.
    """
    changes = {name: number for name, number in (("workers", workers), ("trials", trials)) if number is not None}
    if not changes:
        raise ParameterError("nothing to change; give --workers or --trials")
    before = read_orders(folder)
    if before is None:
        raise StateError(f"search {folder.name}: no driver has begun it yet; start it: ensemble search run")
    orders = dataclasses.replace(before, **changes)
    Limits(orders.workers, orders.trials)  # refuses what cannot be
    write_json(folder / CONTROL_FILE, dataclasses.asdict(orders))
    return orders


class Control:
    """The driver's side: writes what its command said, then gives what the file says by now.

    A file that cannot be read changes nothing: the last numbers hold.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Raises DataError where the folder cannot be written."""
        self._folder, self._limits = folder, limits
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONTROL_FILE, dataclasses.asdict(Orders(limits.workers, limits.trials, time.time())))
        self._seen = self._stamp()

    def limits(self) -> Limits:
        """The numbers of now.  Cheap: the file is read where it has changed."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._take_up(read_orders(self._folder))
            except (DataError, ParameterError) as error:
                log.warning("control not understood error=%s", error)
        return self._limits

    def _take_up(self, orders: Orders | None) -> None:
        if orders is None:
            return
        self._limits = dataclasses.replace(self._limits, workers=orders.workers, trials=orders.trials)
        log.info("control changed workers=%d trials=%d", orders.workers, orders.trials)

    def _stamp(self) -> Any:
        try:
            status = (self._folder / CONTROL_FILE).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
