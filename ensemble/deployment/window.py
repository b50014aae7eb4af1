"""Tasks under way, a bounded number of them: what keeps the memory of driver and server bounded for any deployment."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import Future

from ensemble.jobs import Outcome, Task
from ensemble.workflow import Jobs

# Jobs that are submitted and have not ended: enough that no node waits for the driver.
LEAST, PER_PROCESS = 256, 4


def window_size(processes: int) -> int:
    """How many tasks are to be under way for so many processes at a time."""
    return max(LEAST, PER_PROCESS * processes)


class Window:
    """Submits tasks, and hands each back as it ends, in whatever order."""

    def __init__(self, jobs: Jobs, size: int) -> None:
        self._jobs, self._size = jobs, size
        self._ended: queue.SimpleQueue[tuple[Task, Future[Outcome]]] = queue.SimpleQueue()
        self._under_way: dict[str, Task] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def full(self) -> bool:
        return len(self._under_way) >= self._size

    @property
    def keys(self) -> list[str]:
        """Of the tasks under way, the oldest first."""
        return list(self._under_way)

    def submit(self, task: Task) -> None:
        """Have a task done; one that failed before is done anew."""
        before = self._jobs.outcome(task.key)
        if before is not None and before.failure is not None:
            self._jobs.forget([task.key])
        self._under_way[task.key] = task
        self._jobs.submit(task).add_done_callback(lambda future: self._ended.put((task, future)))

    def ended(self, wait_s: float) -> Iterator[tuple[Task, Outcome]]:
        """The tasks that have ended; waits so long for one.  Raises TransientError where the service is lost."""
        try:
            task, future = self._ended.get(timeout=wait_s)
            while True:
                self._under_way.pop(task.key, None)
                yield task, future.result()
                task, future = self._ended.get_nowait()
        except queue.Empty:
            return

    def withdraw(self) -> None:
        """Take what has not started out of Balsam; what runs goes on, and is found again by the next run."""
        self._jobs.forget(self.keys)
        self._under_way.clear()
