"""Importing TensorFlow without what only makes it slower: seconds and a third of the files of every job's start.

TensorFlow and Keras import what else is installed only so that they could take its objects, too: scikit-learn, pandas,
matplotlib and JAX, which are no part of what jobs compute.  Where they are missing, both do without.  So they are
missing while TensorFlow is imported; and the garbage collector, which would look at all the new objects again and again
and find none to free, waits until it is.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OPTIONAL = frozenset({"sklearn", "pandas", "matplotlib", "jax"})


class _Hidden(MetaPathFinder):
    """Says of some packages that they are not installed, to the thread that made it: others import them as ever."""

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._thread = names, threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._names and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{fullname} is hidden while TensorFlow is imported", name=fullname)
        return None


@contextlib.contextmanager
def lean_import(hidden: Collection[str]) -> Iterator[None]:
    """In the block, packages of these names cannot be imported unless they are already; afterwards they can."""
    finder, collecting = _Hidden(hidden), gc.isenabled()
    sys.meta_path.insert(0, finder)
    gc.disable()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if collecting:
            gc.enable()
