"""Suggestions from an optimiser in this process and beside it.

What driver and optimiser say to each other is tried with every optimiser, a thread in the process's place; what belongs
to processes (death, orphans, errors) with real ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from apps.core.errors import EnsembleError, ParameterError
from ensemble.search import optimizer_process, suggestions
from ensemble.search.definition import Configuration
from ensemble.search.optimizer_process import Batch, Message
from ensemble.search.optimizers import OPTIMIZERS, Observation, Optimizer, OptimizerSpec
from ensemble.search.space import SearchSpace
from ensemble.search.suggestions import InlineSuggestions, ProcessSuggestions, Suggestions
from tests.ensemble.search.counting import Numbers, numbers
from tests.ensemble.search.optimizers.spaces import SPACES, allowed, value

ROOT = Path(__file__).parents[3]


class ThreadProcess:
    """What ProcessSuggestions needs of a process, as a thread."""

    exitcode = 0

    def __init__(self, target: Any, args: tuple[Connection, int, float], name: str, daemon: bool) -> None:
        self.pid = os.getpid()
        connection, ahead, share = args
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        theirs = Connection(os.dup(connection.fileno()))  # the caller closes its own, as if it were in two processes
        self._thread = threading.Thread(target=self._work, args=(theirs, ahead, share), daemon=True)

    def _work(self, connection: Connection, ahead: int, share: float) -> None:
        with contextlib.closing(connection), contextlib.suppress(OSError):
            optimizer_process.work(connection, ahead, share)

    def start(self) -> None:
        self._thread.start()

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pipe=Pipe, Process=ThreadProcess))
    monkeypatch.setattr(suggestions, "multiprocessing", fake)


@pytest.fixture(scope="module")
def spaces() -> dict[str, SearchSpace]:
    return {name: SearchSpace(make()) for name, make in SPACES.items()}


@pytest.fixture(params=["inline", "process"])
def make(request: pytest.FixtureRequest, in_threads: None) -> Callable[[Callable[[], Optimizer]], Suggestions]:
    if request.param == "inline":
        return lambda spec: InlineSuggestions(spec())
    return lambda spec: ProcessSuggestions(spec, ahead=4)


def identities(configurations: Iterable[Configuration]) -> list[str]:
    return [json.dumps(c, sort_keys=True) for c in configurations]


def outcomes(configurations: Sequence[Configuration]) -> list[Observation]:
    return [Observation(c, None if i % 5 == 3 else (value(c),)) for i, c in enumerate(configurations)]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("space", sorted(SPACES))
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimiser_on_every_space(name: str, space: str, spaces: Any, make: Any) -> None:
    taken: list[Configuration] = []
    with make(OptimizerSpec(name, spaces[space], seed=1, initial_points=4)) as stream:
        while len(taken) < 12:
            batch = stream.take(3)
            assert len(batch) <= 3
            if not batch:
                break
            taken += batch
            stream.tell(outcomes(batch))
        assert stream.exhausted == (space == "tiny")
        assert (stream.ready == 0) or space != "tiny"
        assert (stream.take(2) == []) == (space == "tiny")
    assert len(set(identities(taken))) == len(taken) >= (7 if space == "tiny" else 12)
    assert all(allowed(space, c) for c in taken)


def test_what_was_told_or_avoided_before_the_first_take_is_not_given(spaces: Any, make: Any) -> None:
    known = OptimizerSpec("random", spaces["tiny"], seed=2)().ask(7)
    with make(OptimizerSpec("random", spaces["tiny"], seed=2)) as stream:
        stream.tell(outcomes(known[:2]))
        stream.avoid(known[2:4])
        taken = [c for _ in range(4) for c in stream.take(1)]
        assert sorted(identities(taken)) == sorted(identities(known[4:]))


WATCHED: list[Numbers] = []


def watched(*settings: float) -> Numbers:
    """Makes, where it is unpickled in this process, an optimiser that the test finds in WATCHED."""
    WATCHED.append(Numbers(*settings))  # type: ignore[arg-type]
    return WATCHED[-1]


def observed(*configurations: Configuration) -> list[Observation]:
    return [Observation(c, (1.0,)) for c in configurations]


class TestBeside:
    """ProcessSuggestions, with an optimiser that can be watched."""

    @pytest.fixture(autouse=True)
    def _threads(self, in_threads: None) -> None: ...

    def test_it_keeps_some_ahead_and_fills_up(self) -> None:
        with ProcessSuggestions(Numbers, ahead=6) as stream:
            assert numbers(stream.take(2)) == [0, 1]
            assert stream.ready == 4
            assert numbers(stream.take(9)) == [2, 3, 4, 5]
            until(lambda: stream.ready == 6)
            assert numbers(stream.take(1)) == [6]
            assert not stream.exhausted

    def test_after_a_tell_fresh_ones_replace_those_not_taken(self) -> None:
        with ProcessSuggestions(watched, ahead=4) as stream:
            first = stream.take(1)
            stream.tell(observed(*first))
            until(lambda: numbers(stream._ready) == [1000, 1001, 1002, 1003])
            assert [call for call in WATCHED[-1].calls if call != ("avoid", [])] == [
                ("ask", [4]),
                ("tell", [0]),
                ("release", [1, 2, 3]),
                ("ask", [4]),
            ]
            assert numbers(stream.take(2)) == [1000, 1001]

    def test_what_others_took_leaves_the_ready_ones(self) -> None:
        with ProcessSuggestions(Numbers, ahead=4) as stream:
            stream.take(1)
            stream.avoid([{"n": 2}])
            assert numbers(stream.take(2)) == [1, 3]

    def test_tells_that_come_while_it_learns_are_learnt_together(self) -> None:
        with ProcessSuggestions(functools.partial(watched, -1, 0.2), ahead=8, share=0.5) as stream:
            taken = stream.take(4)
            for configuration in taken:
                stream.tell(observed(configuration))
                time.sleep(0.02)
            until(lambda: sum(len(n) for what, n in WATCHED[-1].calls if what == "tell") == 4)
            assert WATCHED[-1].tells == 2

    def test_an_error_of_the_optimiser_is_raised_here(self) -> None:
        with ProcessSuggestions(functools.partial(Numbers, 4), ahead=4) as stream:
            assert numbers(stream.take(4)) == [0, 1, 2, 3]
            with pytest.raises(EnsembleError, match=r"optimiser's process .* failed: ValueError: no idea(.|\n)*in ask"):
                stream.take(1)
            with pytest.raises(EnsembleError, match="no idea"):
                stream.tell([])

    def test_an_error_of_the_user_stays_one(self, spaces: Any) -> None:
        spec = OptimizerSpec("cbo", spaces["plain"], options={"kappa": -1})
        with ProcessSuggestions(spec, ahead=2) as stream, pytest.raises(ParameterError, match="kappa = -1"):
            stream.take(1)

    def test_what_cannot_be_pickled_is_an_error(self) -> None:
        with (
            ProcessSuggestions(lambda: Numbers(), ahead=2) as stream,
            pytest.raises(EnsembleError, match="cannot be given"),
        ):
            stream.take(1)

    def test_closed_ones_say_so(self) -> None:
        stream = ProcessSuggestions(Numbers, ahead=4)
        stream.take(1)
        stream.close()
        stream.close()
        with pytest.raises(EnsembleError, match="closed"):
            stream.take(1)

    @pytest.mark.parametrize(("ahead", "share"), [(0, 0.5), (1, 0.0), (1, 1.5)])
    def test_bad_settings(self, ahead: int, share: float) -> None:
        with pytest.raises(ParameterError, match="ahead = "):
            ProcessSuggestions(Numbers, ahead, share)


def test_one_taken_while_it_is_replaced_stays_taken() -> None:
    """The optimiser hears that 1 was taken after it has released it."""
    ours, theirs = Pipe()
    thread = threading.Thread(target=optimizer_process.work, args=(theirs, 4, 0.5))
    thread.start()
    try:
        ours.send(watched)
        ours.send(Message("start", []))
        assert ours.recv() == Batch([{"n": n} for n in range(4)], replaces=False, last=False)
        ours.send(Message("tell", observed({"n": 0})))
        assert ours.recv() == Batch([{"n": n} for n in range(1000, 1004)], replaces=True, last=False)
        ours.send(Message("taken", [{"n": 0}, {"n": 1}, {"n": 1000}]))
        ours.send(Message("taken", [{"n": 1001}]))
        assert numbers(ours.recv().configurations) == [1004, 1005]
        assert ("release", [1, 2, 3]) in WATCHED[-1].calls
        assert [n for what, items in WATCHED[-1].calls if what == "avoid" for n in items] == [0, 1]
    finally:
        ours.close()
        thread.join(10)
    assert not thread.is_alive()


class TestProcess:
    """A real process."""

    def test_the_default_optimiser_works_beside_and_its_death_is_noticed(self, spaces: Any) -> None:
        with ProcessSuggestions(OptimizerSpec("cbo", spaces["conditional"], initial_points=4), ahead=8) as stream:
            taken: list[Configuration] = []
            while len(taken) < 24:
                batch = stream.take(4)
                taken += batch
                stream.tell(outcomes(batch))
            assert len(set(identities(taken))) == len(taken)
            assert all(allowed("conditional", c) for c in taken)
            assert stream.pid is not None
            os.kill(stream.pid, signal.SIGKILL)
            with pytest.raises(
                EnsembleError, match=rf"optimiser's process \(pid {stream.pid}\) died with exit code -9"
            ):
                while True:
                    stream.take(8)

    def test_it_is_idle_where_nothing_happens_and_ends_with_a_driver_that_is_killed(self, tmp_path: Path) -> None:
        script = tmp_path / "driver.py"
        script.write_text(
            textwrap.dedent(
                """
                import time
                from ensemble.search.suggestions import ProcessSuggestions
                from tests.ensemble.search.counting import Numbers

                if __name__ == "__main__":
                    stream = ProcessSuggestions(Numbers, ahead=4)
                    stream.take(1)
                    print(stream.pid, flush=True)
                    time.sleep(60)
                """
            )
        )
        with subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        ) as driver:
            assert driver.stdout is not None
            child = psutil.Process(int(driver.stdout.readline()))
            before = sum(child.cpu_times()[:2])
            time.sleep(0.5)
            assert sum(child.cpu_times()[:2]) - before < 0.1
            driver.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
