"""The one module that reads environment variables.  Everything else takes values as arguments."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "ENSEMBLE_HOME"
NODES_VARIABLE = "ENSEMBLE_NODES"
LAUNCHER_VARIABLE = "ENSEMBLE_LAUNCHER"
AGENT_VARIABLE = "ENSEMBLE_AGENT"
SITE_VARIABLE = "BALSAM_SITE_PATH"


def default_home() -> Path:
    """State folder of the embedded service: `ENSEMBLE_HOME`, or `ensemble` under the user's data directory."""
    given = os.environ.get(HOME_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("ensemble"))


def batch_job_nodes() -> int:
    """Number of virtual nodes of the batch job that this process belongs to (1 outside of one)."""
    return int(os.environ.get(NODES_VARIABLE) or 1)


def launcher_mark() -> str | None:
    """The mark that the local scheduler put on the batch job that this process belongs to."""
    return os.environ.get(LAUNCHER_VARIABLE)


def current_site() -> Path:
    """Folder of the site that this agent or launcher serves (Balsam sets the variable)."""
    return Path(os.environ[SITE_VARIABLE])


def inherited_environment() -> dict[str, str]:
    """A copy of this process's environment, the base of what child processes get."""
    return dict(os.environ)
