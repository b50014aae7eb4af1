"""Names of a search's tasks."""


def trial_key(search: str, number: int) -> str:
    """The key of a trial's task."""
    return f"search/{search}/trial-{number:04d}"
