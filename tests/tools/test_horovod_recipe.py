"""The recipe of the Horovod wheel: the narrowed guard, CMake's arguments, and a cache that holds whole wheels only.

That the wheel works is the business of tests/test_horovod.py, which uses the one that `make test` built.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tools import build_horovod, horovod_cmake

SOURCE = """#include "one.h"
#if TENSORFLOW_VERSION >= 2006000000
void allreduce();
#endif // TENSORFLOW_VERSION >= 2006000000
"""


def source_folder(tmp_path: Path, text: str) -> Path:
    file = tmp_path / horovod_cmake.XLA_SOURCE
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return tmp_path


def test_guard_gets_an_upper_end_once(tmp_path: Path) -> None:
    folder = source_folder(tmp_path, SOURCE)
    for _ in range(2):
        horovod_cmake.narrow_guard(folder)
        lines = (folder / horovod_cmake.XLA_SOURCE).read_text().splitlines()
        assert lines[1] == "#if TENSORFLOW_VERSION >= 2006000000 && TENSORFLOW_VERSION < 2014000000"
        assert lines[3] == "#endif // TENSORFLOW_VERSION >= 2006000000"


def test_another_horovod_is_refused(tmp_path: Path) -> None:
    folder = source_folder(tmp_path, "void allreduce();\n")
    with pytest.raises(SystemExit, match=r"this recipe is for Horovod 0\.28\.1"):
        horovod_cmake.narrow_guard(folder)


def test_only_a_build_gets_a_target() -> None:
    configure = ["/src", "-DCMAKE_BUILD_TYPE=Release"]
    assert horovod_cmake.arguments_for(configure) == configure
    build = ["--build", ".", "--config", "Release", "--", "VERBOSE=1"]
    expected = ["--build", ".", "--target", "tensorflow", "--config", "Release", "--", "VERBOSE=1"]
    assert horovod_cmake.arguments_for(build) == expected


def test_cache_is_in_the_users_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ENSEMBLE_WHEELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_horovod.wheel_cache() == tmp_path / ".cache" / "ensemble" / "wheels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build_horovod.wheel_cache() == tmp_path / "xdg" / "ensemble" / "wheels"
    monkeypatch.setenv("ENSEMBLE_WHEELS", str(tmp_path / "own"))
    assert build_horovod.wheel_cache() == tmp_path / "own"


def test_key_names_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    key = build_horovod.wheel_key()
    assert key.startswith("horovod-0.28.1-tensorflow-2.")
    assert "-cpython-311-" in key
    monkeypatch.setattr(build_horovod, "version", lambda name: "9.9")
    assert build_horovod.wheel_key() != key


def fake_build(work: Path) -> Path:
    assert list(work.iterdir()) == [], "a build starts in an empty folder"
    out = work / "wheel"
    out.mkdir()
    (out / "horovod-0.28.1-cp311.whl").write_text("wheel")
    return out


def test_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []

    def slow_build(work: Path) -> Path:
        builds.append(work)
        time.sleep(0.2)
        return fake_build(work)

    monkeypatch.setattr(build_horovod, "build", slow_build)
    threads = [threading.Thread(target=build_horovod.provide, args=(tmp_path, "key")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert build_horovod.provide(tmp_path, "key").name == "horovod-0.28.1-cp311.whl"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".key.lock", "key"]


def test_what_a_killed_build_left_is_not_taken_for_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tmp_path / ".key.partial" / "wheel"
    half.mkdir(parents=True)
    (half / "horovod-half.whl").write_text("half")
    monkeypatch.setattr(build_horovod, "build", fake_build)
    assert build_horovod.provide(tmp_path, "key").read_text() == "wheel"


def test_a_failed_build_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Path) -> Path:
        (work / "half").write_text("")
        raise build_horovod.BuildError("no compiler")

    monkeypatch.setattr(build_horovod, "build", fail)
    with pytest.raises(build_horovod.BuildError, match="no compiler"):
        build_horovod.provide(tmp_path, "key")
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


def test_the_log_of_a_failed_build_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: Path) -> Path:
        (work / build_horovod.LOG_FILE).write_text("error: no such header")
        raise build_horovod.BuildError("building failed")

    monkeypatch.setattr(build_horovod, "build", fail)
    with pytest.raises(build_horovod.BuildError, match=r"building failed\nthe whole log is .*key\.log"):
        build_horovod.provide(tmp_path, "key")
    assert (tmp_path / "key.log").read_text() == "error: no such header"
    assert not (tmp_path / "key").exists()


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(build_horovod.BuildError, match="no C\\+\\+ compiler 'no-such-compiler'"):
        build_horovod.build(tmp_path)
    assert list(tmp_path.iterdir()) == []
