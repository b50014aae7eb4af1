"""What a running search is asked to do, in a file that its driver looks at: so it can be changed while it runs.

A driver writes `driver.N.json` into the search's folder when it begins (N: its seat), `ensemble search resize` changes
it, and the driver takes the new numbers up at its next decision.  The next driver begins with what its own command
says.
"""

from __future__ import annotations

import dataclasses
import json
import logging
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

    Raises DataError where a file holds something else.
    """
    return [orders for _, orders in _standing(folder)]


def change_orders(folder: Path, workers: int | None = None, trials: int | None = None) -> list[Orders]:
    """Ask every driver for so many workers of its own, or all of them for so many trials; returns all they are asked.

    Raises StateError where no driver has begun, ParameterError where nothing is asked or a number is not positive.
    """
    if workers is None and trials is None:
        raise ParameterError("nothing to change; give --workers or --trials")
    changed = []
    for file, before in _standing(folder):
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


def nodes_of_others(folder: Path, site: str) -> int:
    """Nodes at a site that the other drivers of the search in `folder` count on."""
    return sum(orders.workers for orders in standing_orders(folder) if orders.site == site and orders.driver != _me())


class Control:
    """The driver's side: writes what its command said, then gives what the file says by now.

    A file that cannot be read changes nothing: the last numbers hold.
    """

    def __init__(self, seat: Seat, limits: Limits, site: str | None = None) -> None:
        """Raises DataError where the folder cannot be written."""
        self._file, self._limits = orders_file(seat.folder, seat.number), limits
        orders = Orders(limits.workers, limits.trials, time.time(), _me(), site)
        write_json(self._file, dataclasses.asdict(orders))
        self._seen = self._stamp()

    def limits(self) -> Limits:
        """The numbers of now.  Cheap: the file is read where it has changed."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._take_up(_read(self._file))
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
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _standing(folder: Path) -> list[tuple[Path, Orders]]:
    """The files that count, and their orders."""
    seats = held_seats(folder)
    files = [orders_file(folder, seat) for seat in seats] or sorted(folder.glob("driver.*.json"))
    found = [(file, orders) for file in files if (orders := _read(file)) is not None]
    return found if seats else sorted(found, key=lambda one: one[1].begun)[-1:]


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
