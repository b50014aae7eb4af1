"""Facts about the project itself: what its files say, and which package imports which."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from apps.core.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("analysis", "apps", "ensemble", "searches")
OWN = {*PACKAGES, "benchmarks", "sites", "tests", "tools"}
# Parts of the control plane that a plain import of the command line must not load.
HEAVY = {"tensorflow", "keras", "balsam", "deephyper", "pandas", "matplotlib", "ray", "sklearn", "scipy", "zarr"}


def tracked_files() -> list[Path]:
    """Text files under version control; all of them where the tests run outside a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return normalised(found.group())


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        found: dict[str, object] = tomllib.load(stream)["project"]
    return found


def declared() -> set[str]:
    """Names of all direct dependencies, those of the extras among them."""
    description = project()
    extras = description["optional-dependencies"]
    assert isinstance(extras, dict)
    groups = [description["dependencies"], *extras.values()]
    return {requirement_name(line) for group in groups for line in group}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("apps", {"ensemble", "searches", "analysis", "balsam", "deephyper", "benchmarks", "tests"}),
        ("ensemble", {"searches", "benchmarks", "tests"}),
        ("analysis", {"apps", "ensemble", "searches", "balsam", "deephyper", "benchmarks", "tests"}),
        ("searches", {"benchmarks", "tests"}),
    ],
)
def test_import_arrows(package: str, forbidden: set[str]) -> None:
    """The picture in the architecture: what a package may import, `apps/definitions.py` being the page for Balsam."""
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(package)
        for name in imported(path)
        if name in forbidden and (path, name) != (ROOT / "apps" / "definitions.py", "balsam")
    ]
    assert broken == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_not_empty(package: str) -> None:
    """So that the walk above has something to look at."""
    assert python_files(package)


def test_command_line_is_light() -> None:
    code = f"import sys, ensemble.cli.main\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_import_is_declared() -> None:
    """Each third-party module that the code names comes from a direct dependency, not from somebody else's."""
    providers = importlib.metadata.packages_distributions()
    # tools/build_horovod.py installs the first; the others are optional, in environments of their own.
    known = declared() | {"horovod", "libensemble", "feabas"}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in python_files(*PACKAGES, "benchmarks", "tests", "tools")
        for name in imported(path)
        if name not in OWN and name not in sys.stdlib_module_names
        if not known & {normalised(provider) for provider in providers.get(name, [name])}
    }
    assert sorted(undeclared) == []


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    for line in pinned:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line), f"{line!r} is not name==version"
    pairs = [line.split("==") for line in pinned]
    names = [normalised(name) for name, _ in pairs]
    assert len(names) == len(set(names)), "a package is pinned twice"
    return {normalised(name): version for name, version in pairs}


def test_constraints_are_exact_and_without_addresses() -> None:
    assert len(constraints()) > 100


def test_constraints_pin_every_direct_dependency() -> None:
    assert declared() - set(constraints()) == set()


def installed_closure() -> dict[str, str]:
    """Version of each installed package that this project needs, directly or not (extras for tests included)."""
    # Where Ray was imported, the packages that it brings along come first on the path.
    path = [folder for folder in sys.path if not folder.endswith("thirdparty_files")]
    found: dict[str, str] = {}
    waiting = [("ensemble", extra) for extra in ("", "cpu", "mpi", "ray", "benchmark", "test")]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        distribution = next(iter(importlib.metadata.distributions(name=name, path=path)), None)
        if distribution is None:
            continue  # pip check, part of every installation, tells of missing ones
        found[name] = distribution.version
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needs = {(normalised(requirement.name), wanted) for wanted in ("", *requirement.extras)}
                waiting += needs - seen
                seen |= needs
    return found


def test_the_environment_is_the_pinned_one() -> None:
    """constraints.txt names every package that the project brings in, in the version that is installed."""
    pins = constraints()
    found = installed_closure()
    assert len(found) > 80
    differing = {name: (version, pins.get(name)) for name, version in found.items() if pins.get(name) != version}
    assert differing.keys() == {"ensemble"}, differing


def test_no_file_names_a_machine_or_a_registry() -> None:
    """No folder of one machine and no address of a package registry: the project is anybody's."""
    folders = "|".join(("work", "farm", "root", "home/[a-z]+", "opt/pypi"))
    hosts = "|".join((r"pypi\.(org|python)", r"pythonhosted\.org", r"files\.pyth", r"index-url", r"find-links"))
    pattern = re.compile(rf"(?<![\w.}}~)])/(?:{folders})/|{hosts}")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if path == Path(__file__):
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_tracked_files_are_small() -> None:
    """Data belongs elsewhere; a file of more than 1 MiB got in by mistake."""
    assert [str(path.relative_to(ROOT)) for path in tracked_files() if path.stat().st_size > 2**20] == []


def test_source_files_have_one_job() -> None:
    long = [path for path in python_files(*PACKAGES) if len(path.read_text().splitlines()) > 600]
    assert [str(path.relative_to(ROOT)) for path in long] == []


def test_the_user_guide_names_every_stage() -> None:
    guide = (ROOT / "docs" / "user-guide.md").read_text()
    named = {name for row in re.findall(r"^\| (`.*?`) \| ", guide, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    assert set(STAGES) - named == set()
