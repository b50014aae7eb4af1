"""Jobs for `ensemble run --dry-run`: nothing is done, and nothing has been."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from ensemble.jobs import Outcome, Task


class NoJobs:
    """Says of every task that it has not ended; submitting one is a mistake of the caller."""

    def submit(self, task: Task) -> Future[Outcome]:
        raise RuntimeError(f"{task.key}: was submitted in a dry run")

    def outcome(self, key: str) -> Outcome | None:
        return None

    def unfinished(self) -> set[str]:
        return set()

    def withdraw(self, keys: Iterable[str]) -> set[str]:
        return set()

    def forget(self, keys: Iterable[str]) -> None:
        pass

    def workdir(self, key: str) -> Path:
        return Path(key)
