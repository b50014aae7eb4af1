"""Build Horovod's wheel once into the user's cache and install it into the environment that runs this script.

The build happens in an environment of its own that sees TensorFlow in ours, so that the build's tools change nothing
there.  A wheel is known by the versions it was built against and by this recipe, and enters the cache whole or not at
all.  The cache is `ENSEMBLE_WHEELS`, by default `ensemble/wheels` in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
WRAPPER = ROOT / "tools" / "horovod_cmake.py"
HOROVOD = "horovod==0.28.1"
LOG_FILE = "build.log"
PIP_OPTIONS = ("--no-input", "--disable-pip-version-check", "--quiet")
BUILD_SETTINGS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    # A cached wheel serves every environment, so it looks for the mpich package's libmpi from where it lies itself
    # (lib/python3.11/site-packages/horovod/tensorflow); mpicc would only name the environment it was built in.
    "LDFLAGS": "-Wl,-rpath,$ORIGIN/../../../..",
}


class BuildError(Exception):
    """The wheel cannot be built; the message says why."""


def wheel_cache() -> Path:
    """The folder that holds built wheels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ENSEMBLE_WHEELS") or Path(base) / "ensemble" / "wheels").absolute()


def wheel_key() -> str:
    """Names what a wheel was built from and for; equal keys, interchangeable wheels."""
    try:
        tensorflow = version("tensorflow-cpu")
    except PackageNotFoundError:
        tensorflow = version("tensorflow")
    recipe = hashlib.sha256(repr(BUILD_SETTINGS).encode() + WRAPPER.read_bytes()).hexdigest()[:8]
    name = HOROVOD.replace("==", "-")
    target = f"{sys.implementation.cache_tag}-{platform.machine()}"
    return f"{name}-tensorflow-{tensorflow}-mpich-{version('mpich')}-{target}-{recipe}"


def cached_wheel(folder: Path) -> Path | None:
    """The wheel in one cache entry."""
    return next(folder.glob("*.whl"), None)


def make_build_environment(folder: Path) -> Path:
    """A virtual environment with the build tools that also sees this environment's packages; returns its Python."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        tools = tomllib.load(stream)["project"]["optional-dependencies"]["horovod-build"]
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", *PIP_OPTIONS, "-c", CONSTRAINTS, *tools], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    seen = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site.stdout.decode().strip(), "main-environment.pth").write_text("\n".join(sorted(seen)) + "\n")
    return python


def build(work: Path) -> Path:
    """Build the wheel below the empty folder `work`; returns the folder that holds it alone.  Raises BuildError."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        raise BuildError(f"there is no C++ compiler {compiler!r}: install one, or name it in CXX")
    python = make_build_environment(work / "environment")
    binaries = python.parent
    wrapper = work / "cmake"
    wrapper.write_text(f'#!/bin/sh\nexec "{python}" "{WRAPPER}" "{binaries / "cmake"}" "$@"\n')
    wrapper.chmod(0o755)
    out, log = work / "wheel", work / LOG_FILE
    (work / "tmp").mkdir()
    environment = os.environ | BUILD_SETTINGS
    environment |= {
        "HOROVOD_CMAKE": str(wrapper),
        "MAKEFLAGS": f"-j{len(os.sched_getaffinity(0))}",
        "TMPDIR": str(work / "tmp"),
        # The mpich package's compiler wrappers are in the main environment's folder of programs.
        "PATH": os.pathsep.join([str(binaries), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
    }
    pip = [str(python), "-m", "pip", "wheel", "-v", "--no-input", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*pip, "-w", str(out), HOROVOD], stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=work
        )
        try:
            watch(process, log)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode or cached_wheel(out) is None:
        lines = log.read_text(errors="replace").splitlines()
        raise BuildError("\n".join([*lines[-60:], f"building {HOROVOD} failed, see the lines above"]))
    return out


def watch(process: subprocess.Popen[bytes], log: Path) -> None:
    """Say how long a build has run and what it does, until it ends: one moving line on a terminal, else few lines."""
    terminal = sys.stdout.isatty()
    started, said = time.monotonic(), 0.0
    while process.poll() is None:
        time.sleep(0.5)
        elapsed = time.monotonic() - started
        if elapsed - said < (1 if terminal else 30):
            continue
        said = elapsed
        percentages = re.findall(r"^\s*\[\s*(\d+)%\]", log.read_text(errors="replace"), re.MULTILINE)
        line = (
            f"building Horovod, {percentages[-1] if percentages else 0} %, {elapsed:.0f} s (two to nine minutes, once)"
        )
        print(f"\r{line:<78}" if terminal else line, end="" if terminal else "\n", flush=True)
    if terminal:
        print(f"\r{'':<78}\r", end="", flush=True)


def provide(cache: Path, key: str) -> Path:
    """The wheel of that key, from the cache or built into it; concurrent callers wait for one build."""
    entry = cache / key
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.is_dir():
            partial = cache / f".{key}.partial"
            if partial.exists():  # of a process that was killed
                shutil.rmtree(partial)
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="ensemble-horovod-") as work:
                try:
                    shutil.copytree(build(Path(work)), partial)
                except BuildError as error:
                    log = cache / f"{key}.log"
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(Path(work) / LOG_FILE, log)
                        raise BuildError(f"{error}\nthe whole log is {log}") from error
                    raise
            partial.rename(entry)
            print(f"built {HOROVOD} in {time.monotonic() - started:.0f} s into {entry}", flush=True)
    wheel = cached_wheel(entry)
    if wheel is None:
        raise BuildError(f"{entry}: holds no wheel; remove this folder and run the same command again")
    return wheel


def install(wheel: Path) -> None:
    """Install the wheel into the environment that runs this script; its dependencies are the project's own."""
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", *PIP_OPTIONS, "--no-deps", "--force-reinstall", str(wheel)], check=True)
    subprocess.run([*pip, "check", *PIP_OPTIONS], check=True)


def main() -> int:
    stamp = Path(sys.prefix) / "horovod-installed"
    try:
        key = wheel_key()
        if stamp.is_file() and stamp.read_text() == key:
            return 0
        install(provide(wheel_cache(), key))
        stamp.write_text(key)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{shlex.join(map(str, error.cmd))} failed; see its message above", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"the Horovod wheel cannot be cached ({error}); name a writable folder in ENSEMBLE_WHEELS", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
