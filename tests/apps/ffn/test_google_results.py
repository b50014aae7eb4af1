"""google/ffn's result files: read without executing anything, written as that program reads them."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import types
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from apps.core.errors import DataError
from apps.ffn.google_results import (
    Origin,
    corner_of,
    find_results,
    read_google_result,
    result_path,
    write_google_result,
)
from apps.ffn.restricted_pickle import dump_records, load_restricted

LABELS = np.zeros((2, 3, 4), np.uint32)
LABELS[0, 0], LABELS[1, 2, 3] = 1, 300
ORIGINS = {1: Origin((0, 0, 1), 7, 1.5), 300: Origin((1, 2, 3), 1, 0.25)}
CORNER = (30, 20, 10)


class Record(NamedTuple):
    """A record of no known module."""

    start_zyx: tuple[int, int, int]
    iters: int
    walltime_sec: float


def save_as_google_does(path: Path, module: str, monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    """np.savez_compressed while `module` holds the class of the origins, which is gone when the file is read."""
    parts = module.split(".")
    modules = [types.ModuleType(".".join(parts[: end + 1])) for end in range(len(parts))]
    OriginInfo = namedtuple("OriginInfo", ["start_zyx", "iters", "walltime_sec"], module=module)
    modules[-1].OriginInfo = OriginInfo  # type: ignore[attr-defined]
    origins = {id: OriginInfo(*values) for id, values in members.pop("origins").items()}
    with monkeypatch.context() as patch:
        for item in modules:
            patch.setitem(sys.modules, item.__name__, item)
        np.savez_compressed(path, origins=np.array(origins, object), **members)
    assert module not in sys.modules


@pytest.mark.parametrize(
    "module",
    [
        "ffn.inference.storage",
        "google3.research.neuromancer.segmentation.ffn.storage",
        "google3.private.ffn",
        "storage",
    ],
)
def test_reads_what_google_ffn_writes(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seg-10_20_30.npz"
    save_as_google_does(
        path,
        module,
        monkeypatch,
        segmentation=LABELS.astype(np.uint16),
        origins={1: ((0, 0, 1), 7, 1.5), np.int64(300): ((np.int64(1), 2, 3), 1, np.float32(0.25))},
        request=b"\x0a\x03abc",
        counters=json.dumps({"inference-calls": 8}),
        overlaps={1: np.array([[], []]), 300: np.array([[1], [5]])},
    )
    found = read_google_result(path)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.uint16
    assert found.origins == ORIGINS
    assert [type(value) for value in found.origins[300].zyx] == [int, int, int]
    assert found.corner == CORNER
    assert found.counters == {"inference-calls": 8}
    assert found.request == b"\x0a\x03abc"
    assert {key: value.tolist() for key, value in found.overlaps.items()} == {1: [[], []], 300: [[1], [5]]}


def test_reads_results_of_consensus_and_of_unfinished_runs(tmp_path: Path) -> None:
    np.savez(tmp_path / "seg-0_0_0.npz", segmentation=np.where(LABELS == 1, -1, LABELS.astype(np.int32)))
    found = read_google_result(tmp_path / "seg-0_0_0.npz")
    assert sorted(np.unique(found.labels).tolist()) == [0, 300]
    assert (found.origins, found.counters, found.request, found.overlaps) == ({}, {}, b"", {})


def test_reads_pickles_of_python_2(tmp_path: Path) -> None:
    """Protocol 2, byte strings, an OrderedDict beside the record's fields, and an array, as Python 2.7 wrote them."""
    pickled = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01)cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]"
        b"}K\x01cgoogle3.research.neuromancer.segmentation.ffn.storage\nOriginInfo\n"
        b"K\x02K\x03K\x04\x87"  # start_zyx
        b"K\x05G?\xf8\x00\x00\x00\x00\x00\x00\x87\x81"  # iters, 1.5 seconds; NEWOBJ
        b"ccollections\nOrderedDict\n]](U\x05itersK\x05ea\x85Rb"  # BUILD with the second copy
        b"satb."
    )
    path = tmp_path / "seg-0_0_0.npz"
    write_members(path, segmentation=npy(LABELS), origins=object_header() + pickled)
    assert read_google_result(path).origins == {1: Origin((2, 3, 4), 5, 1.5)}


def test_round_trip(tmp_path: Path) -> None:
    overlaps = {300: np.array([[1], [5]])}
    path = write_google_result(tmp_path, CORNER, LABELS, ORIGINS, {"steps": 8}, b"request", overlaps)
    assert path == tmp_path / "10" / "20" / "seg-10_20_30.npz"
    assert path == result_path(tmp_path, CORNER)
    assert corner_of(path) == CORNER
    assert find_results(tmp_path) == [path]
    found = read_google_result(path)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert (found.origins, found.corner, found.counters, found.request) == (ORIGINS, CORNER, {"steps": 8}, b"request")
    np.testing.assert_array_equal(found.overlaps[300], overlaps[300])
    first = path.read_bytes()
    write_google_result(tmp_path, CORNER, LABELS.astype(np.int64), ORIGINS, {"steps": 8}, b"request", overlaps)
    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (2**16, np.uint32), (2**32, np.uint64)]
)
def test_labels_are_written_in_the_fewest_bits(largest: int, dtype: type, tmp_path: Path) -> None:
    labels = np.full((1, 1, 2), largest, np.uint64)
    found = read_google_result(write_google_result(tmp_path, CORNER, labels, {})).labels
    assert found.dtype == dtype
    assert found.tolist() == labels.tolist()


def test_pickles_of_values_hold_the_values() -> None:
    array = np.empty((), object)
    array[()] = {"a": [None, True, False, -1, 255, 2**40, -(2**63), 1.5], 3: (b"\x00x", "\u03bc", {}, [], ())}
    assert pickle.loads(dump_records(array, {})).item() == array.item()
    assert load_restricted(io.BytesIO(dump_records(array, {})), "", lambda *name: None).item() == array.item()
    for values in (
        np.arange(6).reshape(2, 3).T,
        np.zeros((2, 0), np.uint8),
        np.array([1, 2], np.float32),
        np.array(True),
    ):
        loaded = pickle.loads(dump_records(values, {}))
        np.testing.assert_array_equal(loaded, values)
        assert loaded.dtype == values.dtype
    with pytest.raises(TypeError, match=r"cannot write a (Posix|Windows)Path"):
        dump_records({1: Path("x")}, {})


def test_plain_numpy_reads_what_is_written_where_google_ffn_is(tmp_path: Path) -> None:
    """Another process, in which a module of google/ffn's name holds that program's named tuple."""
    path = write_google_result(tmp_path, CORNER, LABELS, ORIGINS, {"steps": 8}, b"request", {1: np.zeros((2, 0), int)})
    package = tmp_path / "import" / "ffn" / "inference"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "storage.py").write_text(
        "from collections import namedtuple\nOriginInfo = namedtuple('OriginInfo', 'start_zyx iters walltime_sec')\n"
    )
    code = f"""
        import json, warnings
        import numpy as np
        warnings.simplefilter("error")
        data = np.load({str(path)!r}, allow_pickle=True)
        assert sorted(data.files) == ["counters", "origins", "overlaps", "request", "segmentation"], data.files
        origins = data["origins"].item()
        from ffn.inference import storage
        assert origins == {{1: ((0, 0, 1), 7, 1.5), 300: ((1, 2, 3), 1, 0.25)}}, origins
        assert all(type(item) is storage.OriginInfo for item in origins.values())
        assert origins[1].start_zyx == (0, 0, 1) and origins[300]._replace(iters=2).iters == 2
        assert data["segmentation"].dtype == np.uint16 and data["segmentation"][1, 2, 3] == 300
        assert data["request"].item() == b"request"
        assert json.loads(data["counters"].item()) == {{"steps": 8}}
        assert data["overlaps"].item()[1].shape == (2, 0)
    """
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "import")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Malicious:
    """Unpickled in the ordinary way it runs what it was made with."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "seg-0_0_0.npz"
    np.savez(path, segmentation=LABELS, origins=np.array({1: Malicious(os.system, f"touch {mark}")}, dtype=object))
    with pytest.raises(DataError, match=r"seg-0_0_0.npz: origins: refused to load (posix|nt)\.system"):
        read_google_result(path)
    assert not mark.exists()
    np.load(path, allow_pickle=True)["origins"]  # what it does where nobody looks
    assert mark.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Malicious(eval, "1"), "builtins.eval"),
        (Malicious(getattr, "", "join"), "builtins.getattr"),
        (Malicious(np.load, "x"), r"numpy\.load"),
        (Path("x"), "pathlib"),
        (Record((0, 0, 0), 1, 1.0), r"test_google_results\.Record"),
        (np.ma.masked_array([1]), r"numpy\.ma"),
    ],
)
def test_anything_but_data_is_refused(value: Any, named: str, tmp_path: Path) -> None:
    path = tmp_path / "seg-0_0_0.npz"
    np.savez(path, segmentation=LABELS, overlaps=np.array({1: value}, dtype=object))
    with pytest.raises(DataError, match=f"refused to load .*{named}"):
        read_google_result(path)


@pytest.mark.parametrize(
    "pickled",
    [
        # An array of 2**40 objects without content; a float array with too few bytes; dtypes that hide references.
        pickle.dumps(np.zeros(3))[:-20] + b".",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00V8K\x00K\x01\x87R.",
        b"\x80\x02cnumpy\ndtype\nX\x05\x00\x00\x00O,i,iK\x00K\x01\x87R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}b.",  # BUILD on a function
        b"\x80\x02cnumpy\nndarray\n}b.",  # BUILD on a class
        b"\x80\x02cnumpy\nndarray\n.",  # a class as value
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02}P1\n.",
        b"",
        b"\x80\x02}",
        b"garbage",
    ],
)
def test_damaged_pickles_are_data_errors(pickled: bytes, tmp_path: Path) -> None:
    path = tmp_path / "seg-0_0_0.npz"
    write_members(path, segmentation=npy(LABELS), origins=object_header() + pickled)
    with pytest.raises(DataError, match=r"seg-0_0_0.npz"):
        read_google_result(path)


def test_shared_lists_do_not_blow_up(tmp_path: Path) -> None:
    value: Any = []
    for _ in range(64):
        value = [value, value]
    path = tmp_path / "seg-0_0_0.npz"
    write_members(path, segmentation=npy(LABELS), overlaps=object_header() + pickle.dumps(value))
    assert read_google_result(path).overlaps == {}


def test_arrays_of_every_protocol_come_back(tmp_path: Path) -> None:
    pairs = np.arange(6).reshape(3, 2).T
    for protocol in (2, 3, 4, 5):
        content = pickle.dumps(OrderedDict({2: np.asfortranarray(pairs), 3: pairs.astype(">i4")}), protocol)
        path = tmp_path / "seg-0_0_0.npz"
        write_members(path, segmentation=npy(LABELS), overlaps=object_header() + content)
        found = read_google_result(path).overlaps
        assert {key: value.tolist() for key, value in found.items()} == {2: pairs.tolist(), 3: pairs.tolist()}


def test_truncated_and_damaged_files_are_data_errors(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 1000, (8, 8, 8)).astype(np.uint32)
    whole = write_google_result(tmp_path, CORNER, labels, ORIGINS).read_bytes()
    path = tmp_path / "seg-0_0_0.npz"
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"seg-0_0_0\.npz: is damaged"):
            read_google_result(path)
    middle = whole.index(b"segmentation.npy") + 300
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(DataError, match=r"seg-0_0_0\.npz: is damaged"):
        read_google_result(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"labels": LABELS}, "holds no segmentation"),
        ({"segmentation": LABELS[0]}, "three axes"),
        ({"segmentation": LABELS.astype(float)}, "three axes"),
        ({"segmentation": LABELS, "counters": "[not JSON"}, "no google/ffn result"),
        ({"segmentation": LABELS, "counters": np.arange(3)}, "no google/ffn result"),
        ({"segmentation": LABELS, "origins": np.array({1: (1, 2)}, object)}, "no google/ffn result"),
        ({"segmentation": LABELS, "origins": np.array([1, 2], object)}, "no google/ffn result"),
    ],
)
def test_files_of_other_content_are_data_errors(members: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "seg-0_0_0.npz"
    np.savez(path, **members)
    with pytest.raises(DataError, match=message):
        read_google_result(path)


def test_the_corner_comes_from_the_name_or_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "sample.npz", segmentation=LABELS)
    with pytest.raises(DataError, match="give the corner"):
        read_google_result(tmp_path / "sample.npz")
    assert read_google_result(tmp_path / "sample.npz", corner=(0, 0, 0)).corner == (0, 0, 0)
    with pytest.raises(DataError, match="no such file"):
        read_google_result(tmp_path / "seg-0_0_0.npz")


def test_results_are_found_in_both_layouts(tmp_path: Path) -> None:
    deep = write_google_result(tmp_path, (5, 0, 0), LABELS, {})
    flat = tmp_path / "seg-0_0_3.npz"
    flat.write_bytes(deep.read_bytes())
    (tmp_path / "seg-0_0_4.prob").touch()
    assert find_results(tmp_path) == [flat, deep]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="three axes"):
        write_google_result(tmp_path, CORNER, LABELS[0], {})
    with pytest.raises(DataError, match="negative"):
        write_google_result(tmp_path, (-1, 0, 0), LABELS, {})
    (tmp_path / "10").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_google_result(tmp_path, CORNER, LABELS, {})


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def object_header() -> bytes:
    """Of a 0-d object array's .npy file, to which its pickle follows."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
    return stream.getvalue()


def write_members(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
