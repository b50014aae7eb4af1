"""Standard error without what TensorFlow's libraries say of themselves while they are loaded.

TF_CPP_MIN_LOG_LEVEL does not hold for that: the libraries log before they have read it.  Lines are dropped one by one,
by what they say; every other line passes, also one with which the process is ended, as another process filters them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
EVERYTHING = "0"
STANDARD_ERROR = 2
PATIENCE_S = 5.0
# Information (I), and four notices of GPU builds that are no errors, though two of them call themselves so.
NOISE = (
    r"^WARNING: All log messages before absl::InitializeLog\(\) is called",
    r"^I0000 [0-9]",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+: I ",
    r"Unable to register cu(FFT|DNN|BLAS) factory: Attempting to register factory for plugin",
    r"computation placer already registered",
    r"Could not find cuda drivers on your machine",
    r"TF-TRT Warning: Could not find TensorRT",
)


_ONE_AT_A_TIME = threading.RLock()  # of a process's threads: there is one standard error


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Drop lines of NOISE from standard error.  Nothing is dropped where the user has set TF_CPP_MIN_LOG_LEVEL to 0."""
    if os.environ.get(LEVEL) == EVERYTHING:
        yield
        return
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a standard error, `grep`, or room for a process, all is heard
            stack.enter_context(_filtered())
        yield


@contextlib.contextmanager
def _filtered() -> Iterator[None]:
    """Standard error goes through a `grep` that drops NOISE.  Raises OSError before anything is changed."""
    own = os.dup(STANDARD_ERROR)
    try:
        patterns = [word for pattern in NOISE for word in ("-e", pattern)]
        # In a session of its own it outlives an interrupt from the terminal, and says what is left to say.
        filtering = subprocess.Popen(
            ["grep", "-v", "-a", "-E", *patterns], stdin=subprocess.PIPE, stdout=own, start_new_session=True
        )
        assert filtering.stdin is not None  # it was asked for
        _flush()
        os.dup2(filtering.stdin.fileno(), STANDARD_ERROR)
        filtering.stdin.close()
        try:
            yield
        finally:
            _flush()
            os.dup2(own, STANDARD_ERROR)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that was started meanwhile writes there
                filtering.wait(PATIENCE_S)
    finally:
        os.close(own)


def _flush() -> None:
    if sys.stderr is not None:  # as in a process that was started without one
        sys.stderr.flush()
