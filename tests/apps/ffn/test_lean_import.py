"""TensorFlow without what it would import only to take its objects, too."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apps.ffn.lean_import import OPTIONAL, lean_import


def make_package(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    (folder / name / "part.py").write_text("")


def test_hidden_in_the_block_for_its_thread_and_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dull_one", "dull_two", "dull_three"):
        make_package(tmp_path, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    with lean_import({"dull_one", "dull_two"}):
        for name in ("dull_one", "dull_one.part"):
            with pytest.raises(ModuleNotFoundError, match="dull_one is hidden while TensorFlow is imported"):
                importlib.import_module(name)
        importlib.import_module("dull_three.part")
        with ThreadPoolExecutor(1) as other:
            assert other.submit(importlib.import_module, "dull_two").result().__name__ == "dull_two"
        assert importlib.import_module("dull_two") is sys.modules["dull_two"]
    assert importlib.import_module("dull_one.part").__name__ == "dull_one.part"
    assert sys.meta_path == before


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_is_as_it_was_whatever_happens(collecting: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(OSError, match="broken"), lean_import(OPTIONAL):
            assert not gc.isenabled()
            raise OSError("broken")
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if was else gc.disable)()


def test_tensorflow_runs_without_them_and_takes_their_objects_later() -> None:
    program = f"""
import sys
from apps.ffn.backend import import_tensorflow
tf = import_tensorflow()
import keras
assert not sys.modules.keys() & {set(OPTIONAL)}, sys.modules.keys() & {set(OPTIONAL)}
assert keras.layers.Dense(3)(tf.zeros((2, 4))).shape == (2, 3)
import pandas
print(tf.constant(pandas.Series([1, 2])).numpy())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1 2]\n", done.stderr
