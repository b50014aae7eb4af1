"""Files and folders that are there whole or not at all, also when the writer is killed or the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apps.core import files
from apps.core.errors import DataError, StateError
from apps.core.files import (
    file_in_the_making,
    folder_in_the_making,
    lock,
    make_folder,
    move_folder,
    put_back,
    replace_folder,
    try_lock,
    write_atomically,
)


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, in `folder`."""
    root = str(Path(__file__).resolve().parents[3])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_atomically(target, b"one")
    write_atomically(str(target), b"two", mode=0o600)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["file.json"]


def test_default_mode_is_readable(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_kill_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    """The process is killed when the new content is on disk and only the rename is missing: the worst moment."""
    target = tmp_path / "result.json"
    target.write_bytes(b"old")
    code = """
import os, signal
from apps.core import files
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically("result.json", b"new")
"""
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    write_atomically(target, b"newer")
    assert target.read_bytes() == b"newer"


@pytest.mark.parametrize("target", ["absent/file", "file/below", "folder"])
def test_an_unwritable_place_is_named(target: str, tmp_path: Path) -> None:
    """A missing folder, a file where a folder is expected, a folder where a file is expected (root is no exception)."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written") as caught:
        write_atomically(tmp_path / target, b"data")
    assert str(tmp_path / target) in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "x"


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    code = """
import resource
from apps.core.errors import DataError
from apps.core.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically("file", bytes(5000))
except DataError as error:
    print(error)
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "file: cannot be written" in done.stdout
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "volume.zarr"
    with folder_in_the_making(target) as folder:
        (folder / "data").write_text("x")
        assert not target.exists()
    assert (target / "data").read_text() == "x"
    assert names(target.parent) == ["volume.zarr"]


def test_folder_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("old")
    with folder_in_the_making(target) as folder:
        (folder / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("error", [ValueError("bad voxel"), KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_an_error_leaves_the_old_folder(error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    with pytest.raises(type(error)) as caught, folder_in_the_making(target) as folder:
        (folder / "half").write_text("half")
        raise error
    assert caught.value is error
    assert names(target) == []
    assert names(tmp_path) == ["checkpoint"]


def test_no_room_in_the_block_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"volume\.zarr: cannot be written.*more room"):  # noqa: SIM117
        with folder_in_the_making(tmp_path / "volume.zarr"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


@pytest.mark.parametrize("victim", ["", ".old"])
def test_killed_run_is_cleaned_up_by_the_next(victim: str, tmp_path: Path) -> None:
    target = tmp_path / "volume.zarr"
    code = """
import os, signal
from apps.core.files import folder_in_the_making
with folder_in_the_making("volume.zarr") as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    assert not target.exists()
    if victim:  # of a run killed between the exchange and the removal
        (tmp_path / f".volume.zarr{victim}").mkdir()
        target.mkdir()
    with folder_in_the_making(target) as folder:
        assert names(folder) == []
        (folder / "whole").write_text("whole")
    assert names(target) == ["whole"]
    assert names(tmp_path) == ["volume.zarr"]


def test_a_file_where_the_parent_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):  # noqa: SIM117
        with folder_in_the_making(tmp_path / "file" / "volume.zarr"):
            pytest.fail("the block must not start")
    assert (tmp_path / "file").read_text() == "x"


def test_replacing_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without renameat2's exchange get there in two steps."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    new, target = tmp_path / "new", tmp_path / "target"
    for folder in (new, target):
        folder.mkdir()
        (folder / folder.name).write_text("")
    replace_folder(new, target)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["target"]


def test_moving_goes_on_after_a_kill_at_any_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    for kill_at in range(3):
        place = tmp_path / str(kill_at)
        new, target = place / "new", place / "target"
        for folder in (new, target):
            folder.mkdir(parents=True)
            (folder / folder.name).write_text("")
        calls = 0

        def dies(one: Path, other: Path, kill_at: int = kill_at) -> Path:
            nonlocal calls
            calls += 1
            if calls > kill_at:
                raise KeyboardInterrupt
            return rename(one, other)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dies)
            with pytest.raises(KeyboardInterrupt) if kill_at < 2 else contextlib.nullcontext():
                move_folder(new, target)
        if new.exists():
            assert names(new) == ["new"], "the old one is never under the new one's name"
            move_folder(new, target)
        assert names(target) == ["new"]
        assert names(place) == ["target"]


def test_the_old_folder_is_there_until_the_new_one_is(tmp_path: Path) -> None:
    """Killed at any system call that renames, a reader still finds one whole folder."""
    code = """
import os, signal, sys
from pathlib import Path
from apps.core import files
left = int(sys.argv[1])
def kill_at(function):
    def wrapped(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped
files._exchange = kill_at(files._exchange)
Path.rename = kill_at(Path.rename)
files.shutil.rmtree = kill_at(files.shutil.rmtree)
with files.folder_in_the_making("checkpoint") as folder:
    (folder / "step").write_text("2")
"""
    seen = []
    for left in range(4):
        target = tmp_path / str(left) / "checkpoint"
        target.mkdir(parents=True)
        (target / "step").write_text("1")
        done = run_python(f"import sys; sys.argv = ['', '{left}']\n{code}", target.parent)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        seen.append((target / "step").read_text())
    assert seen == ["1", "2", "2", "2"]


def test_a_file_in_the_making_replaces_nothing_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "c.npz"
    target.write_text("old")
    (tmp_path / ".c.npz.partial").write_text("left over from a kill")
    with pytest.raises(RuntimeError), file_in_the_making(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and not list(tmp_path.glob(".*"))
    with file_in_the_making(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and not list(tmp_path.glob(".*"))
    with pytest.raises(DataError, match="cannot be written"), file_in_the_making(tmp_path / "no" / "c") as temporary:
        temporary.write_text("x")


def test_a_folder_is_made_or_its_place_is_named(tmp_path: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=f"{place}: cannot be written"):
            make_folder(place)


def test_a_lock_is_for_one_or_for_those_that_share_it(tmp_path: Path) -> None:
    path, output = tmp_path / ".lock", tmp_path / "output"
    with path.open("a") as mine, path.open("a") as theirs:
        lock(mine, output, alone=False)
        lock(theirs, output, alone=False)
        with path.open("a") as third, pytest.raises(StateError, match="output: another process works on this output"):
            lock(third, output)
    with path.open("a") as mine, path.open("a") as theirs:
        lock(mine, output)
        with pytest.raises(StateError, match="output: another process works on all of it"):
            lock(theirs, output, alone=False)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    expected = rf"{tmp_path}/\.lock: cannot be locked \({os.strerror(number)}\); give a place"
    with (tmp_path / ".lock").open("a+b") as stream, pytest.raises(DataError, match=expected):
        try_lock(stream, shared=True)


def test_only_a_whole_folder_without_another_in_its_place_is_put_back(tmp_path: Path) -> None:
    target, old = tmp_path / "model", tmp_path / ".model.old"
    old.mkdir()
    put_back(target, "model.json")
    assert names(tmp_path) == [".model.old"]
    (old / "model.json").write_text("old")
    target.mkdir()
    put_back(target, "model.json")
    assert names(tmp_path) == [".model.old", "model"]
    target.rmdir()
    put_back(target, "model.json")
    assert names(tmp_path) == ["model"] and (target / "model.json").read_text() == "old"
