"""Training coordinates of a labelled volume of 250^3 voxels: time, memory, and the published procedure beside it.

The peer does what google/ffn's compute_partitions is published to do: for each body one summed-volume table over the
whole volume, from which the share of own voxels around every voxel is read.  It is written here in NumPy, with fewer
passes over the data than the original.  Both get the same volume, one thread and the parameters of FIB-25 (field of
view 33, deltas 8); their classes are compared voxel by voxel.  `--labels` takes a volume of yours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.progress import silent
from apps.core.volumes import new_volume, open_volume, write_volume
from apps.partition.stage import PartitionParameters
from apps.partition.stage import run as partition
from benchmarks.harness import Figure, benchmark_with_options, median

Labels = NDArray[np.integer]

EXTENT, BODIES, REPEATS = 250, 60, 3
QUICK_EXTENT, QUICK_BODIES = 64, 6
FOV, DELTAS, QUICK_FOV, QUICK_DELTAS = (33, 33, 33), (8, 8, 8), (17, 17, 17), (4, 4, 4)


def run(quick: bool, labels: str | None = None) -> list[Figure]:
    """All figures; with `quick` of a small volume, whose times say nothing about the goals."""
    with tempfile.TemporaryDirectory(prefix="ensemble-partition-") as name:
        folder = Path(name)
        if labels is None:
            labels = str(folder / "labels.zarr")
            write_volume(
                labels, neurites(QUICK_EXTENT if quick else EXTENT, QUICK_BODIES if quick else BODIES), (8,) * 3
            )
        given: dict[str, object] = {
            "labels": labels,
            "output": str(folder / "coordinates.npz"),
            "fov": QUICK_FOV if quick else FOV,
            "deltas": QUICK_DELTAS if quick else DELTAS,
            "min_size": 1000 if quick else 10000,
        }
        # First, while this process is small: what it holds counts as memory of the processes that it starts.
        small, large = _peaks(folder, labels, given)
        values = open_volume(labels).read()
        parameters = PartitionParameters.from_json(given)
        own, peer = [], []
        for _ in range(1 if quick else REPEATS):
            begin = time.perf_counter()
            result = partition(parameters, silent)
            own.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            expected = published_classes(values, parameters)
            peer.append(time.perf_counter() - begin)
        wrong = _wrong_voxels(folder, parameters, expected)
        written, read = _tfrecord(folder, 10_000 if quick else 1_000_000)
    seconds = median(own)
    shape = " x ".join(map(str, values.shape))
    return [
        Figure("partition", seconds, "s", None if quick else 10.0, note=f"{shape}, {result.bodies} bodies, one core"),
        Figure("partition, rate", values.size / seconds / 1e6, "Mvoxel/s", better="higher"),
        Figure("published procedure", median(peer), "s", note="classes alone, no coordinates; one core"),
        Figure("times faster than it", median(peer) / seconds, "x", None if quick else 5.0, "higher", "medians"),
        Figure("voxels with another class than it gives", wrong, "voxels", 0.0),
        Figure("peak memory of the stage", small, "MiB", 300.0, note="whole process, imports and coordinates included"),
        Figure("the same for twice the volume", large / small, "x", 1.25, note="at the same max_coordinates"),
        Figure("TFRecord written", written, "s", note="gzip, 1,000,000 coordinates, scaled with --quick"),
        Figure("TFRecord read", read, "s", note="the same file"),
    ]


def neurites(extent: int, bodies: int) -> NDArray[np.uint32]:
    """Labels of a cube: regions around random points, long in z, with a membrane of label 0 between them."""
    from scipy.spatial import cKDTree

    squeezed = np.array([0.3, 1.0, 1.0])
    points = np.random.default_rng(0).uniform(0, extent, (bodies, 3)) * squeezed
    tree = cKDTree(points)
    labels = np.zeros((extent,) * 3, np.uint32)
    plane = np.stack(np.meshgrid(np.arange(extent), np.arange(extent), indexing="ij"), -1)
    for z in range(extent):
        here = np.concatenate([np.full((extent, extent, 1), z), plane], axis=-1) * squeezed
        distance, nearest = tree.query(here, k=2)
        labels[z] = np.where(distance[..., 1] - distance[..., 0] > 1.5, nearest[..., 0] + 1, 0)
    return labels


def published_classes(labels: Labels, parameters: PartitionParameters) -> NDArray[np.uint8]:
    """Classes of all voxels with a whole box around them, one body after the other over the whole volume."""
    radius = parameters.radius
    inner = tuple(slice(r, n - r) for r, n in zip(radius, labels.shape, strict=True))
    voxels = np.prod([2 * r + 1 for r in radius])
    ids, sizes = np.unique(labels, return_counts=True)
    classes = np.zeros(labels[inner].shape, np.uint8)
    for body in ids[(ids > 0) & (sizes >= parameters.min_size)]:
        own = labels == body
        share = summed_boxes(own, radius) / voxels
        mine = own[inner]
        classes[mine] = np.digitize(share[mine], parameters.thresholds) + 1
    return classes


def summed_boxes(values: NDArray[np.bool_], radius: Triple) -> NDArray[np.int32]:
    """Sums over the box of `radius` around each voxel that has one, from a summed-volume table."""
    table = np.zeros([n + 1 for n in values.shape], np.int32)
    table[1:, 1:, 1:] = values
    for axis in range(3):
        np.cumsum(table, axis=axis, out=table)
    (z, y, x) = (2 * r + 1 for r in radius)
    table = table[z:] - table[:-z]
    table = table[:, y:] - table[:, :-y]
    return table[..., x:] - table[..., :-x]


def _wrong_voxels(folder: Path, parameters: PartitionParameters, expected: NDArray[np.uint8]) -> int:
    volume = f"{folder / 'classes.h5'}:classes"
    partition(PartitionParameters.from_json({**parameters.to_dict(), "partition_volume": volume}), silent)
    return int(np.count_nonzero(open_volume(volume).read() != expected))


def _peaks(folder: Path, name: str, given: dict[str, object]) -> tuple[float, float]:
    """Peak memory in MiB of a process that runs the stage, on the volume `name` and on two of it in a row."""
    found = []
    for times in (1, 2):
        labels = folder / f"times{times}.zarr"
        _repeat(name, labels, times)
        work = folder / f"work{times}"
        work.mkdir()
        (work / "parameters.json").write_text(json.dumps({**given, "labels": str(labels)}))
        subprocess.run(
            [sys.executable, "-m", "apps.partition", str(work / "parameters.json")], check=True, capture_output=True
        )
        cost = json.loads((work / "result.json").read_text())["cost"]
        found.append(cost["peak_memory_bytes"] / 2**20)
    return found[0], found[1]


def _repeat(name: str, target: Path, times: int) -> None:
    """Write the volume `name` so many times in a row, along z, slab by slab."""
    volume = open_volume(name)
    depth, height, width = volume.shape
    with new_volume(target, (times * depth, height, width), volume.dtype, (8.0, 8.0, 8.0)) as written:
        for start in range(0, times * depth, 32):
            slab = Box.of((start, 0, 0), (32, height, width)).intersection(written.box)
            planes = [volume.read(Box.of((z % depth, 0, 0), (1, height, width))) for z in range(start, slab.end[0])]
            written.write(slab, np.concatenate(planes))


def _tfrecord(folder: Path, count: int) -> tuple[float, float]:
    """Seconds to write and to read a million coordinates, from `count` of them."""
    from apps.ffn.backend import import_tensorflow
    from apps.ffn.google_coordinates import read_tfrecord, write_tfrecord

    import_tensorflow()
    box = Box.of((24, 24, 24), (200, 200, 200))
    coordinates = np.random.default_rng(0).integers(box.offset, box.end, (count, 3)).astype(np.int32)
    path, scale = folder / "coordinates.tfrecord.gz", 1_000_000 / count
    begin = time.perf_counter()
    write_tfrecord(path, coordinates, "volume")
    middle = time.perf_counter()
    read_tfrecord(path)
    return (middle - begin) * scale, (time.perf_counter() - middle) * scale


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", metavar="VOLUME", help="NAME.zarr or FILE.h5:DATASET; default: synthetic, 250^3")


if __name__ == "__main__":
    raise SystemExit(
        benchmark_with_options(
            "benchmarks.ffn_partition", __doc__, lambda options: run(options.quick, options.labels), _add_options
        )
    )
