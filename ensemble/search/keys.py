"""Names of a search's tasks."""

from __future__ import annotations


def trial_folder(search: str, number: int) -> str:
    """What the keys of all jobs of a trial begin with."""
    return f"search/{search}/trial-{number:04d}"


def trial_key(search: str, number: int, rung: int = 0, attempt: int = 1) -> str:
    """The key of the job of one attempt at one rung of a trial."""
    return f"{trial_folder(search, number)}/rung-{rung}/attempt-{attempt}"
