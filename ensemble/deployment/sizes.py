"""How large subvolumes are, how far they overlap, and how many of them a job takes.

Source of the overlap: what the field of view needs at least (`apps.ffn.applicability`).  Subvolumes that are small
against the field of view need more: the network has to be able to step past what is written, and to come back to it
from there (`benchmarks.subvolume_invariance` measures what dividing costs).
"""

from __future__ import annotations

import math

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.volumes import DEFAULT_CHUNKS
from apps.ffn.applicability import needed_overlap
from ensemble.deployment.request import Resources

# Memory of a process: TensorFlow with a network, and of every voxel of the read box what the peak of the seed policy
# (38 bytes were measured) and a flood beside it hold.
PROCESS_BYTES = 1 << 30
BYTES_PER_VOXEL = 64
# Objects are linked by what two subvolumes both see of them: a narrower overlap shows too little of a thin one.
LEAST_OVERLAP = 16
# A subvolume takes this share of an allocation at most: the last one begun is cut off by its end, and goes on in the
# next.
SHARE_OF_ALLOCATION = 0.25
# So many subvolumes for each process, and so many jobs, keep all busy to the end.
SUBVOLUMES_PER_PROCESS, JOBS_PER_PROCESS = 4, 4
# A job lasts so long at least, where there are subvolumes enough: then starting it is a small part.
JOB_S = 300.0
MAX_SUBVOLUMES_PER_JOB = 64
# Wholly masked subvolumes need no network: seconds for the empty piece of each, and for each voxel of its read box,
# whose masks are read once more (5 ms on a busy disk, and 10 to 20 ns, were measured).
MASKED_PIECE_S, MASKED_VOXEL_S = 0.01, 15e-9
MAX_MASKED_PER_JOB = 1024
LARGEST_SIDE = 1024


def plan_overlap(fov: Triple, deltas: Triple) -> Triple:
    """Overlap zyx to use: the least, and one step of the network (`deltas`) on either side of what is written."""
    z, y, x = (max(LEAST_OVERLAP, extent + 2 * step) for extent, step in zip(needed_overlap(fov), deltas, strict=True))
    return z, y, x


def plan_shape(box: Box, overlap: Triple, speed: float | None, resources: Resources) -> Triple:
    """The largest write shape zyx that memory and walltime allow, and that leaves work for every process.

    Memory is a must, and ParameterError says where not even the smallest shape fits; the others give way.
    """
    smallest = max(1, *(-(-max(overlap) // chunk) for chunk in DEFAULT_CHUNKS))
    sides = range(smallest, max(smallest, LARGEST_SIDE // min(DEFAULT_CHUNKS)) + 1)
    shapes = list(dict.fromkeys(_divide(box.shape, side) for side in sides))
    fitting = [shape for shape in shapes if memory_of(_read(shape, overlap)) <= resources.process_memory]
    if not fitting:
        check_memory(_read(shapes[0], overlap), resources)
    longest = 60 * resources.wall_time_min * SHARE_OF_ALLOCATION
    best = fitting[0]
    for shape in fitting:
        seconds = math.prod(_read(shape, overlap)) / speed if speed else 0.0
        count = math.prod(-(-n // s) for n, s in zip(box.shape, shape, strict=True))
        if seconds <= longest and count >= SUBVOLUMES_PER_PROCESS * resources.processes:
            best = shape
    return best


def check_memory(read_shape: Triple, resources: Resources) -> None:
    """Raise ParameterError where a process has too little memory for a subvolume of this read shape zyx."""
    needed, there = memory_of(read_shape), resources.process_memory
    if needed > there:
        raise ParameterError(
            f"node memory: a job has {there / 2**30:.1f} GiB, and a subvolume that reads {read_shape} needs "
            f"{needed / 2**30:.1f} GiB; give fewer jobs on a node, fewer --workers where they share this machine, "
            "what a node has with --node-memory, or, where nothing is begun, smaller ones with --subvolume"
        )


def memory_of(read_shape: Triple) -> int:
    """Bytes that a process needs for a subvolume of this read shape zyx."""
    return PROCESS_BYTES + BYTES_PER_VOXEL * math.prod(read_shape)


def plan_subvolumes_per_job(count: int, seconds: float | None, resources: Resources) -> int:
    """How many subvolumes of `seconds` each (None: not known) a job takes."""
    if resources.subvolumes_per_job is not None:
        return resources.subvolumes_per_job
    fair = max(1, count // (JOBS_PER_PROCESS * resources.processes))
    wanted = JOB_S / seconds if seconds else MAX_SUBVOLUMES_PER_JOB
    return max(1, min(fair, round(wanted), MAX_SUBVOLUMES_PER_JOB))


def plan_masked_per_job(read_shape: Triple) -> int:
    """How many wholly masked subvolumes of this read shape zyx a job takes.

    It follows from the grid alone, as what is done is known by it.
    """
    seconds = MASKED_PIECE_S + MASKED_VOXEL_S * math.prod(read_shape)
    return max(1, min(MAX_MASKED_PER_JOB, round(JOB_S / seconds)))


def _divide(extent: Triple, side: int) -> Triple:
    """Write shape zyx of whole chunks, `side` of them along an axis at most, that divides the box evenly."""
    shape = []
    for n, chunk in zip(extent, DEFAULT_CHUNKS, strict=True):
        chunks = math.ceil(n / chunk)
        shape.append(math.ceil(chunks / math.ceil(chunks / side)) * chunk)
    return shape[0], shape[1], shape[2]


def _read(shape: Triple, overlap: Triple) -> Triple:
    z, y, x = (n + o for n, o in zip(shape, overlap, strict=True))
    return z, y, x
