"""Create the project's virtual environment and install the project into it: `python environment.py FOLDER EXTRAS`.

Run by the Makefile with the machine's own Python 3.11, so it uses the standard library alone.  When all is installed a
stamp is written, last; it names what was installed from which pins, so that the next call has nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP_FILE = "ensemble-installed.json"


def pins() -> str:
    """Identifies what an installation depends on: the two files that say what to install, and the place."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp(folder: Path) -> tuple[str, set[str]]:
    """Pins and extras of a finished installation in `folder`; ("", nothing) where none was finished."""
    try:
        found = json.loads((folder / STAMP_FILE).read_text())
        return str(found["pins"]), set(found["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", set()


def install(folder: Path, extras: set[str]) -> None:
    """Bring `folder` to the state that the pins ask for, with at least these extras of the project.

    Raises CalledProcessError where pip fails, FileExistsError where `folder` holds something else.
    """
    wanted = pins()
    installed, present = read_stamp(folder)
    python = folder / "bin" / "python"
    if installed == wanted and extras <= present and python.exists():
        return
    # An installation that was cut short can hold half a package that pip takes for a whole one: begin anew.
    fresh = not installed or not python.exists()
    if fresh and folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise FileExistsError("it holds something else than a virtual environment")
    (folder / STAMP_FILE).unlink(missing_ok=True)
    started = time.monotonic()
    print(f"installing into {folder} (one to three minutes where nothing is cached)", flush=True)
    if fresh:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(folder)
    extras = extras | present
    # pip compiles on one core; all of them do it below.
    command = [str(python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-compile"]
    if not sys.stdout.isatty():
        command += ["--quiet"]
    command += ["--use-pep517", "--constraint", "constraints.txt", "--editable", f".[{','.join(sorted(extras))}]"]
    # pip builds this project and the few source distributions in environments of its own; the variable pins those too.
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PIP_CONSTRAINT": "constraints.txt"})
    subprocess.run([str(python), "-m", "pip", "check", "--disable-pip-version-check"], check=True)
    # Some packages bring files for other Pythons, which fail; what is not compiled here is when it is imported.
    subprocess.run([str(python), "-m", "compileall", "-qq", "-j", "0", str(folder / "lib")], check=False)
    partial = folder / f"{STAMP_FILE}.partial"
    partial.write_text(json.dumps({"pins": wanted, "extras": sorted(extras)}))
    partial.replace(folder / STAMP_FILE)
    print(f"installed in {time.monotonic() - started:.0f} s", flush=True)


def main() -> int:
    folder, extras = Path(sys.argv[1]).absolute(), set(sys.argv[2].split(","))
    try:
        install(folder, extras)
    except subprocess.CalledProcessError as error:
        print(f"installing into {folder} failed: see pip's message above; run the same command again", file=sys.stderr)
        return error.returncode
    except OSError as error:
        print(f"{folder}: cannot be made ({error}); name another place with VENV=folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
