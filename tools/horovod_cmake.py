"""Stands in for CMake while Horovod 0.28.1 is built: `python horovod_cmake.py REAL_CMAKE ARGUMENTS...`.

Horovod runs the program named in HOROVOD_CMAKE once to configure (first argument: its source folder) and once to build.
Its XLA allreduce, an option that is off unless asked for, includes headers that TensorFlow's packages stopped shipping
with 2.14; the file guards itself by TensorFlow version, and here that guard gets the upper end it lacks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

XLA_SOURCE = Path("horovod/tensorflow/xla_mpi_ops.cc")
GUARD = "#if TENSORFLOW_VERSION >= 2006000000"
NARROWED = f"{GUARD} && TENSORFLOW_VERSION < 2014000000"


def narrow_guard(source: Path) -> None:
    """Narrow the guard of the XLA operations in Horovod's source folder.  Raises SystemExit where it is not there."""
    file = source / XLA_SOURCE
    text = file.read_text()
    if NARROWED in text:
        return
    if text.count(f"{GUARD}\n") != 1:
        raise SystemExit(f"{file}: expected the line {GUARD!r} once; this recipe is for Horovod 0.28.1")
    file.write_text(text.replace(f"{GUARD}\n", f"{NARROWED}\n"))


def arguments_for(arguments: list[str]) -> list[str]:
    """CMake's arguments: those of Horovod, with only TensorFlow's library as the target of a build."""
    if arguments[:1] == ["--build"]:
        return [*arguments[:2], "--target", "tensorflow", *arguments[2:]]
    return arguments


def main() -> int:
    cmake, *arguments = sys.argv[1:]
    if arguments and (Path(arguments[0]) / XLA_SOURCE).is_file():
        narrow_guard(Path(arguments[0]))
    return subprocess.run([cmake, *arguments_for(arguments)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
