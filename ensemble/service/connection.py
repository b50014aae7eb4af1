"""Pointing things at a running service: child processes by their environment, this process by Balsam's own globals."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from apps.core.errors import StateError
from ensemble.service.state import Home, Phase
from ensemble.settings import HOME_VARIABLE, SITE_VARIABLE, inherited_environment


def environment(home: Path) -> dict[str, str]:
    """Variables under which the stock `balsam` command, agents and `balsam.api` use the service in `home`.

    PATH has this Python's folder first, so that its `mpiexec` is found before a system's.  BALSAM_SITE_PATH is there
    only where the home has exactly one site, which then is the one that `balsam queue submit` means.
    """
    base = inherited_environment()
    binaries = str(Path(sys.executable).parent)
    others = [folder for folder in base.get("PATH", os.defpath).split(os.pathsep) if folder != binaries]
    variables = {
        HOME_VARIABLE: str(home.absolute()),
        "BALSAM_CLIENT_PATH": str(Home(home.absolute()).client_file),
        "PATH": os.pathsep.join([binaries, *others]),
    }
    sites = sorted(marker.parent for marker in Home(home.absolute()).sites.glob("*/.balsam-site"))
    if len(sites) == 1:
        variables[SITE_VARIABLE] = str(sites[0].resolve())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        # Balsam asks for the user's name at import; an account without one (as in some containers) gets its number.
        variables["LOGNAME"] = f"uid{os.getuid()}"
    return variables


def require_running(home: Path) -> Home:
    """The home, where its service runs.  Raises StateError that says how to start it otherwise."""
    found = Home(home.absolute())
    phase = found.load_state().observed
    if phase is not Phase.RUNNING:
        raise StateError(
            f"no service runs in {home} (it is {phase}); start it with `ensemble service start --home {home}`"
        )
    return found


def connect(home: Path) -> None:
    """Make `balsam.api` in this process use the service in `home`, whether Balsam is imported already or not.

    Raises StateError where that service does not run.
    """
    found = require_running(home)
    variables = environment(found.path)
    os.environ.update(variables)
    if SITE_VARIABLE not in variables:
        os.environ.pop(SITE_VARIABLE, None)
    if "balsam.api" in sys.modules:
        _point_again(found)


def _point_again(home: Home) -> None:
    """Give the managers and the application base of an imported `balsam.api` a client of `home`."""
    from balsam import api
    from balsam._api import models

    from ensemble.service.client import open_client

    client = open_client(home.client_file)
    api.client = client
    for model in ("Site", "BatchJob", "Job", "TransferItem", "Session", "EventLog"):
        getattr(models, model).objects = getattr(models, f"{model}Manager")(client)
    models.App.objects = models.AppManager(client)
    api.ApplicationDefinition._set_client(client)
    api.ApplicationDefinition._app_id_cache.clear()
