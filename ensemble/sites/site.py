"""Making and finding sites.  A site is a folder with settings, registered with the service under the folder's path."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import settled, write_atomically
from ensemble.service.connection import require_running
from ensemble.service.state import Home, file_lock

TEMPLATES = Path(__file__).resolve().parents[2] / "sites"
MARKER = ".balsam-site"
TEMPLATE_RECORD = ".template"
MAX_NODES = 10_000  # node ids travel in one argument string of the launcher


@dataclass(frozen=True)
class Site:
    """A site of a home.

    Attributes:
        name: unique within the home.
        id: the service's number for it.
        path: its folder: settings, job template, logs, and the jobs' work folders under `data/`.
        nodes: the most virtual nodes that a batch job may ask for.
        home: state folder of the service that it belongs to.
    """

    name: str
    id: int
    path: Path
    nodes: int
    home: Path


def templates() -> list[str]:
    """Names of the templates in `sites/`."""
    return sorted(settings.parent.name for settings in TEMPLATES.glob("*/settings.yml"))


def create_site(home: Path, name: str, template: str = "local", nodes: int = 2, path: Path | None = None) -> Site:
    """Make a site and register it with the running service; an identical one that exists is returned.

    Raises ParameterError for a bad name or number of nodes, DataError for an unknown template or an unwritable place,
    StateError where the service does not run or another site has this name or place.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ParameterError(f"site name {name!r}: expected letters, digits, and . _ - inside, at most 64 characters")
    if not 1 <= nodes <= MAX_NODES:
        raise ParameterError(f"nodes = {nodes}: expected a number from 1 to {MAX_NODES}")
    if template not in templates():
        raise DataError(f"{template!r}: no such site template; expected one of {', '.join(templates())}")
    place = require_running(home)
    entry = place.sites / name
    target = (path or entry).absolute()
    with file_lock(place.path / "sites.lock", 30.0, f"a site in {place.path}"):
        if (entry / MARKER).exists():
            return _same_site(open_site(home, name), template, nodes, target)
        if target.exists():
            raise StateError(f"{target}: exists already and is not a site; give another name or --path")
        return _make(place, name, template, nodes, target)


def open_site(home: Path, name: str) -> Site:
    """The site of that name; the service need not run.  Raises StateError with the known names otherwise."""
    place = Home(home.absolute())
    folder = place.sites / name
    if not name or "/" in name or not (folder / MARKER).is_file():
        known = ", ".join(site.name for site in list_sites(home)) or "none"
        raise StateError(
            f"{name!r}: no such site in {home} (there is {known}); make it with `ensemble site create {name}`"
        )
    try:
        queues = yaml.safe_load((folder / "settings.yml").read_text())["scheduler"]["allowed_queues"]
        nodes = int(queues["local"]["max_nodes"])
        number = int((folder / MARKER).read_text())
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder}/settings.yml: is damaged ({type(error).__name__}: {error})") from error
    return Site(name, number, folder.resolve(), nodes, place.path)


def list_sites(home: Path) -> list[Site]:
    """All sites of a home, by name."""
    return [open_site(home, marker.parent.name) for marker in sorted(Home(home.absolute()).sites.glob(f"*/{MARKER}"))]


def register_stages(site: Site) -> dict[str, int]:
    """Make or update the applications of all stages at the site; returns stage -> Balsam's number of its application.

    One process at a time: Balsam asks whether an application is there before it makes it, and the server refuses the
    second of two that find it missing.  The service must be connected.
    """
    from apps.definitions import register

    with file_lock(site.path / ".stages.lock", 60.0, f"site {site.name!r}"):
        return register(site.id)


def client_of(site: Site) -> Any:
    """A Balsam client of the site's service.  Raises StateError where that does not run."""
    from ensemble.service.client import open_client

    return open_client(require_running(site.home).client_file)


def _same_site(site: Site, template: str, nodes: int, target: Path) -> Site:
    """`site`, which has the wanted name, if it also is what was asked for and the service knows it."""
    if (site.path / TEMPLATE_RECORD).read_text().strip() != template or site.path != target.resolve():
        raise StateError(f"site {site.name!r} exists in {site.path} with other settings; choose another name")
    if site.nodes != nodes:
        raise StateError(
            f"site {site.name!r} exists with {site.nodes} nodes instead of {nodes}; choose another name, or change "
            f"max_nodes in {site.path}/settings.yml and restart its agent"
        )
    client = client_of(site)
    if not list(client.Site.objects.filter(id=site.id, path=str(site.path))):
        raise StateError(f"{site.path}: belongs to a service that is gone; remove the folder or choose another name")
    return site


def _make(place: Home, name: str, template: str, nodes: int, target: Path) -> Site:
    """Fill a folder under a temporary name, register it, and rename it: what has a marker is whole."""
    import jinja2

    from ensemble.service.client import open_client

    source = TEMPLATES / template
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o700)
        for folder in ("log", "data", "qsubmit"):
            (partial / folder).mkdir(mode=0o700)
        settings = jinja2.Template((source / "settings.yml").read_text(), keep_trailing_newline=True).render(
            nodes=nodes
        )
        write_atomically(partial / "settings.yml", settings.encode(), mode=0o600)
        write_atomically(partial / "job-template.sh", (source / "job-template.sh").read_bytes(), mode=0o700)
        write_atomically(partial / TEMPLATE_RECORD, f"{template}\n".encode(), mode=0o600)
        # The service knows sites by their real path; the folder is not there yet, but its parent is.
        registered = settled(target)
        number = _register(open_client(place.client_file), name, registered)
        write_atomically(partial / MARKER, str(number).encode(), mode=0o440)
        partial.rename(target)
        entry = place.sites / name
        if entry != target:
            entry.unlink(missing_ok=True)
            entry.symlink_to(registered)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror}); give a writable place with --path") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Site(name, number, registered, nodes, place.path)


def _register(client: Any, name: str, path: Path) -> int:
    """The service's number for the site; one that a killed `create_site` registered is taken over."""
    for known in client.Site.objects.filter(path=str(path)):
        if known.path == path:
            known.name = name
            known.save()
            return int(known.id)
    return int(client.Site.objects.create(name=name, path=path).id)
