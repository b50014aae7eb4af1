"""Stage `multiscale`: the coarser levels of a volume, with which a viewer shows all of it at once.

The levels become part of the volume's own OME-Zarr folder; level 0 is read and never written.  Plan: the levels, and
the towers that they are built in (pyramid.py).  Do: towers, in any order within a storey (building.py).  Collect: when
every tower is recorded, the levels are named in the metadata (storage.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, cast

import zarr
from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.parts import Part, Phase, share
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Volume, open_volume
from apps.multiscale.building import Kind, Site, build_tower
from apps.multiscale.pyramid import Level, Pyramid, plan_pyramid, storeys, tower, tower_count
from apps.multiscale.storage import (
    Store,
    check_free,
    clear,
    has_leftovers,
    has_levels,
    hold,
    is_published,
    prepare,
    publish,
)

# A tower: its storey, and its number in the storey.
Piece = tuple[int, int]

# Windows of more voxels than this are no pyramid; the comparison of labels grows with the square.
_LARGEST_WINDOW = 64


class MultiscaleParameters(Parameters, frozen=True, kw_only=True):
    """Which volume gets levels, and which."""

    volume: Annotated[str, Meta(min_length=1, description="OME-Zarr volume, complete; its folder gets the levels")]
    kind: Annotated[Kind, Meta(description="image: a voxel is the mean of those below it; labels: the mode")]
    factors: Annotated[
        tuple[Triple, ...] | None,
        Meta(
            description="for every level above 0, how many voxels of the one below become one, zyx; by default 2 along "
            "the axes with the shortest voxels until all are about as long, then 2 along all"
        ),
    ] = None
    levels: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="levels above 0, at most; by default as many as it takes to fit into one chunk"),
    ] = None
    chunks: Annotated[
        Triple | None, Meta(description="chunks of the levels above 0, zyx; those of level 0 by default")
    ] = None
    part: Annotated[
        Part | None,
        Meta(
            description="this job's share of the work, of several jobs; when all have ended, one without it completes "
            "the levels"
        ),
    ] = None
    workers: Annotated[int, Meta(ge=1, description="threads; the levels do not depend on it")] = 1
    replace: Annotated[bool, Meta(description="make the levels anew, in place of those that the volume has")] = False

    def check(self) -> None:
        if self.factors is not None and self.levels is not None:
            raise ParameterError("factors and levels: expected one of them, factors give the number of levels")
        for factor in self.factors or ():
            size = factor[0] * factor[1] * factor[2]
            if min(factor) < 1 or not 1 < size <= _LARGEST_WINDOW:
                raise ParameterError(
                    f"factors {factor}: expected whole numbers from 1 on, whose product is 2 to {_LARGEST_WINDOW}"
                )
        if self.chunks is not None and min(self.chunks) < 1:
            raise ParameterError(f"chunks {self.chunks}: expected positive extents")


class MultiscaleResult(Result, frozen=True, kw_only=True):
    """The levels of the volume."""

    volume: Annotated[str, Meta(description="the OME-Zarr volume")]
    levels: Annotated[tuple[Level, ...], Meta(description="from level 0, the volume itself, on")]
    complete: Annotated[bool, Meta(description="whether the volume has the levels now; a part alone does not tell")]
    towers_made: Annotated[int, Meta(ge=0, description="of the pieces of work, those that this run did")]
    towers: Annotated[int, Meta(ge=0, description="all pieces of work")]


def run(parameters: MultiscaleParameters, report: Reporter) -> MultiscaleResult:
    """Build the levels, or a part of them; what an earlier or another run has built is left as it is.

    Raises DataError where the volume is missing, no OME-Zarr, of a dtype that the kind does not fit, or cannot be
    written, and StateError where another process completes it or it has other levels already.
    """
    volume = open_volume(parameters.volume)
    store = _plan(parameters, volume)
    towers = sum(tower_count(store.pyramid, storey) for storey in storeys(store.pyramid))
    wanted = parameters.replace or not is_published(store)
    # What a run that was killed at its very end has left is for one that is alone.
    if len(store.pyramid.levels) == 1 or not (wanted or (parameters.part is None and has_leftovers(store))):
        return _result(parameters, store.pyramid, True, 0, towers)
    try:
        with hold(store, alone=parameters.part is None):
            if not parameters.replace and is_published(store):
                if parameters.part is None:
                    clear(store)
                return _result(parameters, store.pyramid, True, 0, towers)
            check_free(store, parameters.replace)
            prepare(store)
            made = _build(parameters, store, report)
            if parameters.part is None:
                publish(store)
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{volume.name}: levels cannot be written ({why}); give it a place with room") from error
    return _result(parameters, store.pyramid, parameters.part is None, made, towers)


def stands(result: dict[str, Any]) -> bool:
    """Whether the volume has levels still that a result (plain JSON) tells of: it may have been made anew without any.

    Those that were put in their place since are as good.  What a part has built is not asked for: the job that
    completes the levels builds what is missing.
    """
    try:
        known = MultiscaleResult.from_json(result)
    except ParameterError:
        return False  # of another version
    return not known.complete or has_levels(Path(known.volume), known.levels)


def _plan(parameters: MultiscaleParameters, volume: Volume) -> Store:
    array, size = volume.array, volume.voxel_size_nm
    if not isinstance(array, zarr.Array) or size is None:
        raise DataError(f"{volume.name}: is not OME-Zarr; make it one with the stage ingest or interchange")
    kind, dtype = parameters.kind, volume.dtype
    if kind == "labels" and dtype.kind not in "ui":
        raise DataError(f"{volume.name}: has dtype {dtype}; expected integer labels, or kind: image")
    if kind == "image" and dtype.kind != "f" and dtype.itemsize > 4:
        raise DataError(f"{volume.name}: has dtype {dtype}; expected an image of up to 32 bits, or kind: labels")
    chunks = parameters.chunks or cast(Triple, array.chunks)
    pyramid = plan_pyramid(array.path, volume.shape, size, chunks, parameters.factors, parameters.levels)
    return Store(Path(parameters.volume), pyramid, kind, dtype)


def _work(pyramid: Pyramid, part: Part | None) -> list[Piece]:
    """The towers to build, in an order in which they can be; of a part, its share.

    Parts share the first storey, which is nearly all of the work; the others stand on all of it.
    """
    counts = [tower_count(pyramid, storey) for storey in storeys(pyramid)]
    if part is not None:
        return [(0, number) for number in share(counts[0], part)]
    return [(storey, number) for storey, count in enumerate(counts) for number in range(count)]


def _build(parameters: MultiscaleParameters, store: Store, report: Reporter) -> int:
    """Build the towers that are not yet; returns how many."""
    done = store.done()
    work = [item for item in _work(store.pyramid, parameters.part) if f"{item[0]}-{item[1]}" not in done]
    if not work:
        return 0
    site = Site(store.pyramid, store.open_levels(), parameters.kind)
    ranges = storeys(store.pyramid)

    def build(item: Piece) -> None:
        storey, number = item
        build_tower(site, ranges[storey], tower(store.pyramid, ranges[storey], number))
        store.mark(storey, number)

    total, finished = len(work), 0
    for storey, levels in enumerate(ranges):  # one after the other, as each stands on the one before
        what = f"levels {levels[0]} to {levels[-1]}"
        report(finished, total, what)
        for _ in _each(build, [item for item in work if item[0] == storey], parameters.workers):
            finished += 1
            report(finished, total, what)
    return finished


def _each(build: Callable[[Piece], None], items: Iterable[Piece], workers: int) -> Iterator[None]:
    """Call `build` on every item with so many threads, and few calls waiting."""
    if workers == 1:
        yield from map(build, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[None]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(build, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _result(
    parameters: MultiscaleParameters, pyramid: Pyramid, complete: bool, made: int, towers: int
) -> MultiscaleResult:
    return MultiscaleResult(
        volume=parameters.volume, levels=pyramid.levels, complete=complete, towers_made=made, towers=towers
    )


STAGE = Stage(
    name="multiscale",
    summary="Give a volume coarser levels, so that a viewer shows all of it at once.",
    parameters=MultiscaleParameters,
    result=MultiscaleResult,
    run=run,
    example={"volume": "data/image.zarr", "kind": "image", "workers": 2},
    stands=stands,
    phases=(Phase(shared=True), Phase()),
)
