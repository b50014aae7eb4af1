"""What is heard of TensorFlow while it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

NOISE = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795292899.245092    5003 port.cc:153] oneDNN custom operations are on.
2025-09-17 14:44:05.157831: I external/local_xla/xla/tsl/cuda/cudart_stub.cc:32] Could not find cuda drivers
E0000 00:00:1758131045.203198 3722035 cuda_dnn.cc:8579] Unable to register cuDNN factory: Attempting to register \
factory for plugin cuDNN when one has already been registered
"""
REAL = """W0000 00:00:1758131045.2    12 gpu_device.cc:2341] Cannot dlopen some GPU libraries.
2025-09-17 14:44:05.1: F tensorflow/core/platform/cpu_feature_guard.cc] was compiled to use AVX instructions
Traceback (most recent call last):
"""
PROGRAM = f"""
import os
from apps.ffn.quiet import without_noise
os.write(2, b"I0000 1 before\\n")
with without_noise():
    os.write(2, {NOISE!r}.encode())
    os.write(2, {REAL!r}.encode())
    END
os.write(2, b"I0000 2 after\\n")
"""


def heard(end: str = "pass", **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a program whose library is loaded, and then does `end`."""
    program = PROGRAM.replace("END", end)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    return done.returncode, done.stderr


def test_what_libraries_say_of_themselves_is_dropped_and_all_else_passes() -> None:
    assert heard() == (0, f"I0000 1 before\n{REAL}I0000 2 after\n")


def test_last_words_of_a_process_that_is_ended_are_heard() -> None:
    code, said = heard("os.abort()")
    assert code < 0 and said == f"I0000 1 before\n{REAL}"
    code, said = heard("raise OSError('no such library')")
    assert code == 1 and said.endswith("OSError: no such library\n")


def test_who_asks_for_everything_hears_everything() -> None:
    assert NOISE in heard(TF_CPP_MIN_LOG_LEVEL="0")[1]


def test_a_process_without_standard_error_or_grep_goes_on() -> None:
    program = "import os; from apps.ffn.quiet import without_noise\nwith without_noise(): os.write(1, b'goes on')"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=60).stdout == b"goes on"
    assert heard(PATH="") == (0, f"I0000 1 before\n{NOISE}{REAL}I0000 2 after\n")


def test_threads_that_load_at_a_time_leave_standard_error_as_it_was() -> None:
    program = """
import os, threading, time
from apps.ffn.quiet import without_noise
def load():
    with without_noise():
        time.sleep(0.1)
threads = [threading.Thread(target=load) for _ in range(3)]
before = os.readlink("/proc/self/fd/2")
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert os.readlink("/proc/self/fd/2") == before
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_tensorflow_is_loaded_without_a_word() -> None:
    program = "from apps.ffn.backend import import_tensorflow; import_tensorflow()"
    quiet = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=quiet, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
