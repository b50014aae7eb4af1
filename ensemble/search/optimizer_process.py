"""The process that an optimiser works in, beside the driver (see ProcessSuggestions for the other end).

It imports nothing heavy before it was given its optimiser.  The driver owns the suggestions that are ready: here is
only known which were handed over (`ready`) and, some time later, which of them were taken.  A suggestion may therefore
be made anew while it is being taken; the driver drops it then.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from apps.core.errors import EnsembleError
from ensemble.search.optimizers.contract import Observation, Optimizer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from ensemble.search.definition import Configuration

ORPHAN_CHECK_S = 2.0


@dataclass(frozen=True)
class Message:
    """To the process: observations to `tell`, configurations to `avoid` or that were `taken`; `start` making."""

    what: Literal["tell", "avoid", "taken", "start"]
    items: list[Any]


@dataclass(frozen=True)
class Batch:
    """From the process: suggestions.

    Attributes:
        configurations: the suggestions.
        replaces: whether they replace what is ready, or come to it.
        last: whether the space holds no other.
    """

    configurations: list[Configuration]
    replaces: bool
    last: bool


@dataclass(frozen=True)
class Failure:
    """From the process: why it ended; `error` is the error itself where it is one of this project."""

    message: str
    error: EnsembleError | None


def serve(connection: Connection, ahead: int, share: float) -> None:
    """Be the optimiser's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to end
    work(connection, ahead, share)


def work(connection: Connection, ahead: int, share: float) -> None:
    """Serve until the other end is closed; the first thing received makes the optimiser, all others are messages."""
    try:
        _Server(connection, connection.recv()(), ahead, share).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver has ended
    except EnsembleError as error:
        connection.send(Failure(str(error), error))
    except Exception as error:
        last_lines = "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
        connection.send(Failure(f"failed: {type(error).__name__}: {error}\n{last_lines}", None))


class _Server:
    def __init__(self, connection: Connection, optimizer: Optimizer, ahead: int, share: float) -> None:
        self._connection, self._optimizer, self._ahead, self._share = connection, optimizer, ahead, share
        self._parent = os.getppid()
        self._started = self._last = False
        self._news: list[Observation] = []
        self._ready: dict[str, Configuration] = {}
        self._rest_until = 0.0

    def run(self) -> None:
        """Serve until the driver ends."""
        while os.getppid() == self._parent:
            while self._connection.poll(self._idle_s()):
                self._receive(self._connection.recv())
            if not self._started:
                continue
            if self._news and (self._low() or time.monotonic() >= self._rest_until):
                self._replace()
            elif self._low() and not self._last:
                self._hand_over(self._ahead - len(self._ready), replaces=False)

    def _low(self) -> bool:
        return len(self._ready) <= self._ahead // 2

    def _idle_s(self) -> float:
        """How long to wait for a message."""
        if self._started and self._low() and (self._news or not self._last):
            return 0.0
        if self._started and self._news:
            return max(0.0, min(self._rest_until - time.monotonic(), ORPHAN_CHECK_S))
        return ORPHAN_CHECK_S

    def _receive(self, message: Message) -> None:
        if message.what == "tell":
            self._news += message.items
            for observation in message.items:
                self._ready.pop(_key(observation.configuration), None)
        elif message.what == "avoid":
            self._optimizer.avoid(message.items)
            for configuration in message.items:
                self._ready.pop(_key(configuration), None)
        elif message.what == "taken":
            # One that is no longer ready was released; it is pending again, unless it was told since.
            self._optimizer.avoid([c for c in message.items if self._ready.pop(_key(c), None) is None])
        else:
            self._started = True

    def _replace(self) -> None:
        """Learn what is new, and make suggestions in place of those that were not taken."""
        start = time.monotonic()
        news, self._news = self._news, []
        self._optimizer.tell(news)
        self._optimizer.release(self._ready.values())
        self._ready = {}
        self._hand_over(self._ahead, replaces=True)
        end = time.monotonic()
        self._rest_until = end + (end - start) * (1 / self._share - 1)

    def _hand_over(self, count: int, replaces: bool) -> None:
        suggestions = self._optimizer.ask(count)
        self._last = len(suggestions) < count
        self._ready |= {_key(c): c for c in suggestions}
        self._connection.send(Batch(suggestions, replaces, self._last))


def _key(configuration: Configuration) -> str:
    return json.dumps(configuration, sort_keys=True)
