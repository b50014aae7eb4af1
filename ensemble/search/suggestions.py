"""Suggestions where they are needed, when they are needed: an optimiser in this process, or beside it."""

from __future__ import annotations

import json
import multiprocessing
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from apps.core.errors import EnsembleError, ParameterError
from ensemble.search.optimizer_process import Batch, Failure, Message, serve
from ensemble.search.optimizers.contract import Observation, Optimizer

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration


class Suggestions(ABC):
    """A stream of suggestions that learns from observations.  Not thread-safe; no suggestion is given twice."""

    @abstractmethod
    def tell(self, observations: Sequence[Observation]) -> None:
        """Learn from outcomes; never waits."""

    @abstractmethod
    def avoid(self, configurations: Iterable[Configuration]) -> None:
        """Never give these (open trials of an earlier driver, another driver's); pending until told.  Never waits."""

    @abstractmethod
    def take(self, count: int) -> list[Configuration]:
        """What is ready, at most `count`; waits only where nothing is.  [] means that the space is exhausted."""

    @property
    @abstractmethod
    def ready(self) -> int:
        """At least how many take() would give without waiting; 0 too while nobody knows."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether it is known that take() would find nothing any more."""

    @abstractmethod
    def close(self) -> None:
        """End what works beside this process.  May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class InlineSuggestions(Suggestions):
    """Asks the optimiser when suggestions are taken: for tests and small searches."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._exhausted = False

    def tell(self, observations: Sequence[Observation]) -> None:
        self._optimizer.tell(observations)

    def avoid(self, configurations: Iterable[Configuration]) -> None:
        self._optimizer.avoid(configurations)

    def take(self, count: int) -> list[Configuration]:
        taken = self._optimizer.ask(count)
        self._exhausted = len(taken) < count
        return taken

    @property
    def ready(self) -> int:
        return 0 if self._exhausted else 1  # asking does not wait for anything

    @property
    def exhausted(self) -> bool:
        return self._exhausted

    def close(self) -> None:
        pass


class ProcessSuggestions(Suggestions):
    """An optimiser in a process of its own, which keeps `ahead` suggestions ready.

    After a tell the process makes new ones, which replace those not taken.  It starts to make them at the first take()
    or look at `ready`, so that all of them know what was told before.  It ends with this process, however that ends.

    Args:
        make: makes the optimiser there; pickled (an OptimizerSpec).
        ahead: how many suggestions are kept ready.
        share: the part of a core that refitting after tells may take while suggestions are ready.

    Raises ParameterError where `ahead` is less than 1 or `share` outside (0, 1].  All other methods raise what the
    optimiser raised where it is an error of this project, and EnsembleError where its process failed or died.
    """

    def __init__(self, make: Callable[[], Optimizer], ahead: int, share: float = 0.5) -> None:
        if ahead < 1 or not 0 < share <= 1:
            raise ParameterError(f"ahead = {ahead}, share = {share}: expected at least 1, and a share in (0, 1]")
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, ahead, share), name="optimizer", daemon=True)
        self._process.start()
        theirs.close()
        self._changed = threading.Condition()  # guards what the receiving thread writes:
        self._ready: deque[Configuration] = deque()
        self._last_batch = False
        self._failure: Failure | None = None
        self._blocked: set[str] = set()  # given, told or avoided: not to be given
        self._started = self._closed = False
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox.put(make)
        self._threads = [
            threading.Thread(target=work, name=f"optimizer{work.__name__}", daemon=True)
            for work in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int | None:
        """The optimiser's process."""
        return self._process.pid

    def tell(self, observations: Sequence[Observation]) -> None:
        self._check()
        self._block([observation.configuration for observation in observations])
        self._outbox.put(Message("tell", list(observations)))

    def avoid(self, configurations: Iterable[Configuration]) -> None:
        self._check()
        listed = list(configurations)
        self._block(listed)
        self._outbox.put(Message("avoid", listed))

    def take(self, count: int) -> list[Configuration]:
        self._check()
        if count < 1:
            return []
        self._start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._last_batch or self._failure)
            taken = [self._ready.popleft() for _ in range(min(count, len(self._ready)))]
            self._blocked.update(map(_key, taken))
        if taken:
            self._outbox.put(Message("taken", taken))
        else:
            self._check()
        return taken

    @property
    def ready(self) -> int:
        self._check()
        self._start()
        with self._changed:
            return len(self._ready)

    @property
    def exhausted(self) -> bool:
        with self._changed:
            return self._last_batch and not self._ready

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._outbox.put(None)
        self._process.kill()  # it keeps nothing that is not known here
        for thread in self._threads:
            thread.join()
        self._process.join()
        self._connection.close()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._outbox.put(Message("start", []))

    def _block(self, configurations: Iterable[Configuration]) -> None:
        with self._changed:
            self._blocked.update(map(_key, configurations))
            self._drop_blocked()

    def _drop_blocked(self) -> None:
        self._ready = deque(c for c in self._ready if _key(c) not in self._blocked)

    def _check(self) -> None:
        if self._closed:
            raise EnsembleError("these suggestions are closed; make new ones")
        with self._changed:
            failure = self._failure
        if failure is not None:
            if failure.error is not None:
                raise failure.error
            raise EnsembleError(f"the optimiser's process (pid {self.pid}) {failure.message}")

    def _send(self) -> None:
        """In a thread: hand over what is put into the outbox, which waits where the process is at work."""
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return  # the receiving thread says why
            except Exception as error:  # what cannot be pickled
                self._fail(Failure(f"cannot be given {type(message).__name__}: {error}", None))
                return

    def _receive(self) -> None:
        """In a thread: keep ready what the process makes."""
        while True:
            try:
                received: Batch | Failure = self._connection.recv()
            except (EOFError, OSError):
                if not self._closed:
                    self._process.join(5)
                    self._fail(Failure(f"died with exit code {self._process.exitcode}", None))
                return
            if isinstance(received, Failure):
                self._fail(received)
                return
            with self._changed:
                if received.replaces:
                    self._ready.clear()
                self._ready.extend(received.configurations)
                self._drop_blocked()
                self._last_batch = received.last
                self._changed.notify_all()

    def _fail(self, failure: Failure) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = failure
            self._changed.notify_all()


def _key(configuration: Configuration) -> str:
    return json.dumps(configuration, sort_keys=True)
