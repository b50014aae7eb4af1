"""What a running search is asked to do, in a file that its driver looks at: so it can be changed while it runs.

A driver writes `driver.N.json` into the search's folder when it begins (N: its seat), `ensemble search resize` changes
it, and the driver takes the new numbers up at its next decision.  The next driver begins with what its own command
says.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parameters import write_json
from ensemble.search.driver import Limits
from ensemble.search.seats import Seat, held_seats

log = logging.getLogger(__name__)

# How often it is looked what other drivers of the search are asked for.
OTHERS_LOOK_S = 1.0


@dataclass(frozen=True)
class Orders:
    """The content of a file: what one driver is asked to do.

    Attributes:
        workers: nodes at a time.
        trials: of the search in all.
        begun: when the driver began, UTC epoch seconds.
        driver: host and number of its process.
        site: the Balsam site where its trials run; None where they run inside its allocation.
    """

    workers: int
    trials: int
    begun: float
    driver: str
    site: str | None = None


def orders_file(folder: Path, seat: int) -> Path:
    """Where the orders of the driver of a seat are."""
    return folder / f"driver.{seat}.json"


def standing_orders(folder: Path) -> list[Orders]:
    """What the drivers of the search in `folder` that live are asked to do, by seat; of the last one where none lives.

    Raises DataError where the file of one that lives holds something else.
    """
    return [orders for _, orders in _living(folder) or _last(folder)]


def change_orders(folder: Path, workers: int | None = None, trials: int | None = None) -> list[Orders]:
    """Ask every driver for so many workers of its own, or all of them for so many trials; returns all they are asked.

    Raises StateError where no driver has begun, ParameterError where nothing is asked or a number is not positive.
    """
    if workers is None and trials is None:
        raise ParameterError("nothing to change; give --workers or --trials")
    changed = []
    for file, before in _living(folder) or _last(folder):
        orders = dataclasses.replace(
            before,
            workers=before.workers if workers is None else workers,
            trials=before.trials if trials is None else trials,
        )
        Limits(orders.workers, orders.trials)  # refuses what cannot be
        write_json(file, dataclasses.asdict(orders))
        changed.append(orders)
    if not changed:
        raise StateError(f"search {folder.name}: no driver has begun it yet; start it: ensemble search run")
    return changed


def nodes_of_others(searches: Path, site: str) -> int:
    """Nodes at a site that other drivers, which live, of the searches in this folder count on."""
    living = [orders for folder in sorted(searches.glob("*")) for _, orders in _living(folder)]
    return sum(orders.workers for orders in living if orders.site == site and orders.driver != _me())


class Control:
    """The driver's side: writes what its command said, then gives what the file says by now.

    The number of trials is that of all drivers that share the search: the largest that any of them is asked for.
    A file that cannot be read changes nothing: the last numbers hold.
    """

    def __init__(self, seat: Seat, limits: Limits, site: str | None = None) -> None:
        """Raises DataError where the folder cannot be written."""
        self._seat, self._file, self._limits = seat, orders_file(seat.folder, seat.number), limits
        orders = Orders(limits.workers, limits.trials, time.time(), _me(), site)
        write_json(self._file, dataclasses.asdict(orders))
        self._seen = self._stamp()
        self._trials_of_others, self._asked_others = 0, -math.inf

    def limits(self) -> Limits:
        """The numbers of now.  Cheap: the file is read where it has changed, those of others now and then."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            self._asked_others = -math.inf
            try:
                self._take_up(_read(self._file))
            except (DataError, ParameterError) as error:
                log.warning("control not understood error=%s", error)
        if time.monotonic() - self._asked_others > OTHERS_LOOK_S:
            self._asked_others = time.monotonic()
            found = [_read_or_none(orders_file(self._seat.folder, number)) for number in self._seat.others()]
            self._trials_of_others = max((orders.trials for orders in found if orders), default=0)
        return dataclasses.replace(self._limits, trials=max(self._limits.trials, self._trials_of_others))

    def _take_up(self, orders: Orders | None) -> None:
        if orders is None:
            return
        self._limits = dataclasses.replace(self._limits, workers=orders.workers, trials=orders.trials)
        log.info("control changed workers=%d trials=%d", orders.workers, orders.trials)

    def _stamp(self) -> Any:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _living(folder: Path) -> list[tuple[Path, Orders]]:
    """The files of drivers that live, and their orders."""
    files = [orders_file(folder, seat) for seat in held_seats(folder)]
    return [(file, orders) for file in files if (orders := _read(file)) is not None]


def _last(folder: Path) -> list[tuple[Path, Orders]]:
    """The file of the driver that began last, and its orders, of those that can be read; [] where none has begun."""
    files = folder.glob("driver.*.json")
    found = [(file, orders) for file in files if (orders := _read_or_none(file)) is not None]
    return sorted(found, key=lambda one: one[1].begun)[-1:]


def _read_or_none(file: Path) -> Orders | None:
    try:
        return _read(file)
    except DataError as error:
        log.warning("orders passed over error=%s", error)
        return None


def _me() -> str:
    return f"{platform.node()}:{os.getpid()}"


def _read(file: Path) -> Orders | None:
    try:
        found = json.loads(file.read_bytes())
        return Orders(
            int(found["workers"]),
            int(found["trials"]),
            float(found["begun"]),
            str(found["driver"]),
            found["site"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: does not hold what a driver is asked for ({error!r}); remove it and start the driver again"
        ) from error
