"""How a process ended, in words."""

from __future__ import annotations

import signal

# A shell, and mpiexec, give so much more than the signal that ended what they ran.
SHELL_BASE = 128
HINTS = {
    signal.SIGKILL: ", sent by hand or by the system as memory ran out",
    signal.SIGSEGV: ", a fault in a library",
    signal.SIGILL: ", a library made for another processor",
    signal.SIGXCPU: ", a limit on processor time",
    signal.SIGXFSZ: ", a limit on the size of files",
}


def exit_words(code: int) -> str:
    """What an exit code other than 0 tells; as `subprocess` has it: negative where a signal ended the process."""
    number = -code if code < 0 else code - SHELL_BASE
    try:
        found = signal.Signals(number)
    except ValueError:
        return f"exit code {code}"
    return f"signal {found.value} ({found.name}){HINTS.get(found, '')}"
