"""Reconciliation of 10^8 and 10^9 observations: seconds, memory, and a networkx implementation beside it.

An observation is a pair of objects of two subvolumes that share voxels.  They are generated: in a lattice of
subvolumes with 999 objects each, every object runs along one axis through up to 16 subvolumes under ever other ids, and
touches two others slightly; so how many objects there are is known exactly, and is checked.  The solver is that of the
stage; it gets the observations from the generator, and for one size from unit files, as in a deployment.  Each case is
a process of its own, whose peak memory is that of all it does.  networkx gets the pairs that the rule links, which the
same vectorised code finds, and nothing else to do than to unite them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.parameters import write_json
from apps.core.progress import silent
from apps.reconciliation.batches import read_batches
from apps.reconciliation.columns import read_columns, write_columns
from apps.reconciliation.linking import LINKED, LinkRule, apply_rule
from apps.reconciliation.observations import (
    Faces,
    Objects,
    Observations,
    Pairs,
    Unit,
    from_columns,
    objects_of,
    to_columns,
)
from apps.reconciliation.solving import Rules, solve
from apps.reconciliation.units import unit_path
from benchmarks.harness import Figure, benchmark_with_options

OBJECTS, RUN = 999, 16
_NOISE = 999_983
LATTICES: dict[str, Triple] = {
    "1e5": (3, 4, 4),
    "1e6": (7, 7, 8),
    "1e7": (15, 16, 16),
    "1e8": (33, 33, 32),
    "1e9": (70, 70, 71),
}
GIB = 2.0**30


@dataclass(frozen=True)
class Lattice:
    """Generated observations of a lattice of subvolumes, in zyx order.

    Object t of a subvolume (0 to 998) runs along axis t mod 3, and is the same as object t of the next subvolume there
    as long as (place + t) // 16 is; its id is 1 + (t + a number of the subvolume's) mod 999.
    """

    shape: Triple

    def __len__(self) -> int:
        return math.prod(self.shape)

    def objects(self, number: int) -> Objects:
        return self._objects

    def unit(self, number: int) -> Unit:
        z, y, x = np.unravel_index(number, self.shape)
        place = (int(z), int(y), int(x))
        strides = (self.shape[1] * self.shape[2], self.shape[2], 1)
        axes = [axis for axis in (2, 1, 0) if place[axis] + 1 < self.shape[axis]]
        blocks = [_block(axis, place[axis] % RUN) for axis in axes]
        others = [number + strides[axis] for axis in axes]
        own = _ids(number)
        a, b, whole = np.empty((3, sum(len(block.first) for block in blocks)), np.uint32)
        end = 0
        for block, other in zip(blocks, others, strict=True):
            rows = slice(end, end := end + len(block.first))
            first, second = own[block.first], _ids(other)[block.second]
            order = np.argsort(first.astype(np.int64) << 32 | second)
            a[rows], b[rows], whole[rows] = first[order], second[order], block.whole[order]
        noise = _noise()[number % _NOISE :][: len(a)]
        shared = whole * (1000 + 20 * noise) + noise
        sizes = np.array([len(block.first) for block in blocks], np.int64)
        both = np.array([part.sum() for part in np.split(shared, np.cumsum(sizes)[:-1])] if axes else [], np.int64)
        flat = np.full(len(axes), 0.25)
        faces = Faces(np.array(others, np.int64), both + 1000, both, np.full(len(axes), 500), flat, sizes)
        return Unit(self._objects, faces, Pairs(a, b, shared, shared + np.uint32(180), shared + np.uint32(200)))

    @cached_property
    def _objects(self) -> Objects:
        local = np.arange(1, OBJECTS + 1, dtype=np.uint32)
        return Objects(local, np.full(OBJECTS, 9000, np.uint32), np.full(OBJECTS, 5000, np.uint32))

    def expected_objects(self) -> int:
        """How many objects the solver has to find."""
        t = np.arange(OBJECTS)
        runs = [
            int(((extent - 1 + t[axis::3]) // RUN - t[axis::3] // RUN + 1).sum()) * (len(self) // extent)
            for axis, extent in enumerate(self.shape)
        ]
        return sum(runs)


@dataclass(frozen=True)
class _Block:
    """Pairs of objects (not ids) of two subvolumes across a face, and whether they are one; [n] each."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    whole: NDArray[np.uint32]


@cache
def _block(axis: int, place: int) -> _Block:
    """The pairs across the face after `place` along `axis`."""
    t = np.arange(axis, OBJECTS, 3)
    same = t[(place + t) // RUN == (place + 1 + t) // RUN]
    slight = [(t + 3 * step) % OBJECTS for step in (1, 2)]
    first, second = np.concatenate([same, t, t]), np.concatenate([same, *slight])
    return _Block(first, second, (np.arange(len(first)) < len(same)).astype(np.uint32))


@lru_cache(maxsize=1 << 14)
def _ids(number: int) -> NDArray[np.uint32]:
    """The id of each object of a subvolume."""
    return (1 + (np.arange(OBJECTS) + number * 7919) % OBJECTS).astype(np.uint32)


@cache
def _noise() -> NDArray[np.uint32]:
    return np.random.default_rng(0).integers(1, 90, _NOISE + 10 * OBJECTS).astype(np.uint32)


@dataclass(frozen=True)
class Files:
    """The same observations, read from unit files in a folder."""

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def objects(self, number: int) -> Objects:
        return objects_of(read_columns(unit_path(self.folder, number), ["objects."])[1])

    def unit(self, number: int) -> Unit:
        return from_columns(read_columns(unit_path(self.folder, number))[1])


def case_generated(lattice: Lattice, folder: Path) -> dict[str, float]:
    sample = range(0, len(lattice), max(1, len(lattice) // 2000))
    used = time.process_time()
    for number in sample:
        lattice.unit(number)
    generating = (time.process_time() - used) / len(sample) * len(lattice)
    return _solve(lattice, lattice, folder) | {"generating": generating}


def case_files(lattice: Lattice, folder: Path) -> dict[str, float]:
    size = 0
    begin = time.perf_counter()
    for number in range(len(lattice)):
        path = unit_path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_columns(path, {}, to_columns(lattice.unit(number)))
        size += path.stat().st_size
    writing = time.perf_counter() - begin
    return _solve(Files(folder, len(lattice)), lattice, folder) | {"writing": writing, "unit bytes": size}


def case_networkx(lattice: Lattice, folder: Path) -> dict[str, float]:
    import networkx as nx

    empty = _peak_memory()
    begin, used, observations = time.perf_counter(), time.process_time(), 0
    graph: nx.Graph[int] = nx.Graph()
    for batch in read_batches(lattice):
        linked = apply_rule(batch.pairs, batch.face(), LinkRule()) == LINKED
        a, b = batch.supervoxels()
        graph.add_edges_from(zip(a[linked].tolist(), b[linked].tolist(), strict=True))
        observations += len(linked)
    objects = {node: min(group) for group in nx.connected_components(graph) for node in group}
    found = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}
    alone = len(lattice) * OBJECTS - len(objects)
    _check(lattice, len(set(objects.values())) + alone)
    return {**found, "observations": observations, "peak": _peak_memory(), "empty": empty}


def _solve(observations: Observations, lattice: Lattice, folder: Path) -> dict[str, float]:
    solution = folder / "solution"
    solution.mkdir()
    begin, used = time.perf_counter(), time.process_time()
    summary = solve(observations, Rules(LinkRule()), solution, silent)
    found = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}
    _check(lattice, summary.objects)
    written = sum(file.stat().st_size for file in solution.rglob("*") if file.is_file())
    counts = {"observations": summary.observations, "supervoxels": summary.supervoxels}
    return {**found, **counts, "written": written, "peak": _peak_memory()}


def _check(lattice: Lattice, objects: int) -> None:
    if objects != lattice.expected_objects():
        raise AssertionError(f"{objects} objects were found; expected {lattice.expected_objects()}")


def _peak_memory() -> int:
    """Largest resident set of this process in bytes, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


CASES: dict[str, Callable[[Lattice, Path], dict[str, float]]] = {
    "generated": case_generated,
    "files": case_files,
    "networkx": case_networkx,
}


def measure(case: str, size: str, folder: Path | None, kept: Path | None) -> dict[str, float]:
    """One case in a process of its own; what it writes is removed.  What was measured before is in `kept`."""
    record = kept / f"{case}-{size}.json" if kept else None
    if record and record.is_file():
        known: dict[str, float] = json.loads(record.read_text())
        return known
    with tempfile.TemporaryDirectory(prefix="ensemble-reconciliation-", dir=folder) as name:
        command = [sys.executable, "-m", "benchmarks.reconciliation_scale", "--case", case, size, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} of {size} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if record:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, found)
    return found


def run(options: argparse.Namespace) -> list[Figure]:
    """All figures; with `quick` of 10^5 and 10^6 observations, whose times say nothing about the goals."""
    small, large = ("1e5", "1e6") if options.quick else ("1e8", "1e9")
    beside = "1e5" if options.quick else "1e7"
    figures: list[Figure] = []
    cpu: list[float] = []
    for size in (small, large):
        found = measure("generated", size, options.folder, options.resume)
        cpu.append(found["cpu"] / found["observations"])
        figures += _figures_of(found)
    files, peer = (measure(case, beside, options.folder, options.resume) for case in ("files", "networkx"))
    name = f"{peer['observations']:.3g} observations"
    held = (4 * GIB - peer["empty"]) / (peer["peak"] - peer["empty"]) * peer["observations"]
    written = f"{files['unit bytes'] / 1e9:.3g} GB of them, written in {files['writing']:.0f} s"
    return [
        *figures,
        Figure(
            "processor time an observation, large against small",
            cpu[1] / cpu[0],
            "x",
            None if options.quick else 1.25,
            note="1 is linear",
        ),
        Figure(f"{name} from unit files", files["seconds"], "s", note=written),
        Figure(f"{name} from unit files, processor time", files["cpu"], "s"),
        Figure(f"{name} from unit files, peak memory", files["peak"] / GIB, "GiB", 4.0),
        Figure(f"{name}, networkx", peer["seconds"], "s", note="generates the pairs, and writes no evidence"),
        Figure(f"{name}, networkx, processor time", peer["cpu"], "s"),
        Figure(f"{name}, networkx, peak memory", peer["peak"] / GIB, "GiB"),
        Figure("observations that networkx holds in 4 GiB", held / 1e6, "M", better="higher", note="extrapolated"),
        Figure("times less processor time than networkx", peer["cpu"] / files["cpu"], "x", better="higher"),
        Figure("times less memory than networkx", peer["peak"] / files["peak"], "x", better="higher"),
    ]


def _figures_of(found: dict[str, float]) -> list[Figure]:
    """The figures of one size."""
    count = found["observations"]
    name = f"{count:.3g} observations"
    note = f"{found['supervoxels']:.3g} supervoxels"
    used = f"of all threads; about {found['generating']:.0f} s of it generate the observations"
    return [
        Figure(name, found["seconds"], "s", note=note),
        Figure(f"{name}, processor time", found["cpu"], "s", note=used),
        Figure(f"{name}, rate", count / found["seconds"] / 1e6, "M/s", better="higher"),
        Figure(f"{name}, peak memory", found["peak"] / GIB, "GiB", 4.0, note="mapped files included"),
        Figure(f"{name}, written", found["written"] / 1e9, "GB", note="evidence, mapping and objects"),
    ]


def _run_case(arguments: list[str]) -> None:
    case, size, folder = arguments
    print(json.dumps(CASES[case](Lattice(LATTICES[size]), Path(folder))))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, help="where files go, 35 GB of them at 10^9; the system's temporary folder by default"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="keep what each case measured there, and do not measure again what is there: the whole takes long",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        _run_case(sys.argv[2:])
        raise SystemExit(0)
    raise SystemExit(benchmark_with_options("benchmarks.reconciliation_scale", __doc__, run, _add_options))
