"""Work on many tiles, pairs or chunks with several threads or processes; results in order, few in flight."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self, TypeVar

from apps.montage.images import TileReader

Item = TypeVar("Item")
Answer = TypeVar("Answer")
WorkerKind = Literal["threads", "processes"]

_AHEAD = 2  # tasks in flight for every worker: enough that none waits, few enough that results do not pile up


class Workers:
    """A pool that calls `function(reader, item)`; threads share one tile reader, every process has its own.

    What a function returns may depend on its item alone, so that nothing depends on the number of workers.
    """

    def __init__(self, count: int, kind: WorkerKind, cache_bytes: int) -> None:
        self._count = count
        self._processes = kind == "processes" and count > 1
        self._cache_bytes = cache_bytes
        self._reader = TileReader(0 if self._processes else cache_bytes)
        self._pool: Executor | None = None

    def __enter__(self) -> Self:
        if self._processes:
            share = self._cache_bytes // self._count
            # No fork of a process whose threads may hold locks; and children of its own, whose cost counts as its own.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, context, _start_process, (share,))
        elif self._count > 1:
            self._pool = ThreadPoolExecutor(self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[TileReader, Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """The answers, in the order of the items."""
        if self._pool is None:
            yield from (function(self._reader, item) for item in items)
            return
        waiting: deque[Future[Answer]] = deque()
        for item in items:
            if self._processes:
                waiting.append(self._pool.submit(_call_in_process, function, item))
            else:
                waiting.append(self._pool.submit(function, self._reader, item))
            if len(waiting) >= _AHEAD * self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_process_reader = TileReader(0)


def _start_process(cache_bytes: int) -> None:
    global _process_reader
    _process_reader = TileReader(cache_bytes)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call_in_process(function: Callable[[TileReader, Item], Answer], item: Item) -> Answer:
    return function(_process_reader, item)
