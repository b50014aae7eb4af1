"""From synapses to wires: which synapses count, and how many of them every ordered pair of neurons has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.connectome.objects import Counts, Ids, Objects
from apps.core.errors import DataError
from apps.core.parameters import Result
from apps.synapses.table import SynapseTable


class Kept(Result, frozen=True, kw_only=True):
    """What became of the synapses of the table; each that was left out is counted at the first reason that it meets."""

    given: Annotated[int, Meta(description="rows of the table")]
    low_confidence: Annotated[int, Meta(description="left out: confidence below min_confidence")]
    unknown_partner: Annotated[int, Meta(description="left out: pre or post is not known (0)")]
    autapses: Annotated[int, Meta(description="left out: of a neuron onto itself")]
    small_partner: Annotated[int, Meta(description="left out: a partner of fewer voxels than min_voxels")]
    weak: Annotated[int, Meta(description="left out: of a pair of neurons with fewer synapses than min_synapses")]
    kept: Annotated[int, Meta(description="in the graph")]


@dataclass(frozen=True)
class Edges:
    """Ordered pairs of neurons that synapses join, ascending by pre and then post.

    Attributes:
        pre, post: uint64 [n].
        synapses: int64 [n], how many join them: the weight.
        confidence: float64 [n], mean over them.
    """

    pre: Ids
    post: Ids
    synapses: Counts
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pre)


def choose_synapses(
    table: SynapseTable,
    objects: Objects | None,
    min_confidence: float = 0.0,
    min_voxels: int = 0,
    min_synapses: int = 1,
    autapses: bool = False,
) -> tuple[SynapseTable, Kept]:
    """The synapses that count, in the order of their ids, and what became of the others.

    With `objects`, every partner that is known has to be one of them.  Raises DataError that names one which is not:
    the synapses were assigned in another segmentation.
    """
    table = table.take(np.argsort(table.id, kind="stable"))
    given = len(table)
    left_out = {}

    def keep(name: str, condition: Any) -> None:
        nonlocal table
        good = np.asarray(condition, bool)
        left_out[name] = int((~good).sum())
        table = table.take(good)

    keep("low_confidence", table.confidence >= min_confidence)
    keep("unknown_partner", table.partners.all(axis=1))
    keep("autapses", autapses | (table.partners[:, 0] != table.partners[:, 1]))
    if objects is not None:
        row = objects.find(table.partners)
        if (row < 0).any():
            wrong = table.partners[row < 0]
            raise DataError(
                f"synapses: {len(np.unique(wrong))} of their partners, among them {wrong.min()}, are no objects of the "
                "segmentation; give the one in which they were assigned"
            )
        keep("small_partner", (objects.voxels[row] >= min_voxels).all(axis=1))
    else:
        left_out["small_partner"] = 0
    _, pair, synapses = np.unique(table.partners, axis=0, return_inverse=True, return_counts=True)
    keep("weak", synapses[pair.ravel()] >= min_synapses)
    return table, Kept(given=given, kept=len(table), **left_out)


def join_edges(table: SynapseTable) -> Edges:
    """The synapses of every ordered pair of neurons together."""
    if not len(table):
        none = np.zeros(0, np.uint64)
        return Edges(none, none, np.zeros(0, np.int64), np.zeros(0))
    pairs, pair, synapses = np.unique(table.partners, axis=0, return_inverse=True, return_counts=True)
    confidence = np.bincount(pair.ravel(), table.confidence) / synapses
    return Edges(pairs[:, 0], pairs[:, 1], synapses.astype(np.int64), confidence)
