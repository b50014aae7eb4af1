"""Fixtures that several test modules share."""

from __future__ import annotations

import os

# Before anything imports numpy: small matrices gain nothing from more threads, and these wait for each other busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ensemble.sites import Site


@dataclass(frozen=True)
class RunningService:
    """A real Balsam service with one site of four nodes whose agent runs; launchers are each test's own matter."""

    home: Path
    site: Site


@pytest.fixture(scope="session")
def balsam_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Start a service, site and agent in a temporary home, once for all tests that ask; end everything afterwards."""
    from ensemble import service, sites

    home = tmp_path_factory.mktemp("service") / "home"
    try:
        service.start(home)
        site = sites.create_site(home, "laptop", nodes=4)
        sites.start_agent(site)
        yield RunningService(home, site)
    finally:
        service.stop(home)
