"""Settings of flood filling: what the inference and trial stages, and the engine, take."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.ffn.seeds import SeedPolicyName


class InferenceSettings(Parameters, frozen=True, kw_only=True):
    """Settings of flood filling; the defaults are google/ffn's FIB-25 sample configuration."""

    init: Annotated[float, Meta(gt=0, lt=1, description="probability that a new object starts with at its seed")] = 0.95
    pad: Annotated[float, Meta(gt=0, lt=1, description="probability that unexplored voxels show to the network")] = 0.05
    move: Annotated[float, Meta(gt=0, lt=1, description="probability at which the field of view moves on")] = 0.9
    segment: Annotated[float, Meta(gt=0, lt=1, description="probability at which a voxel belongs to the object")] = 0.6
    min_size: Annotated[int, Meta(ge=1, description="voxels; smaller objects are dropped")] = 1000
    boundary_distance: Annotated[Triple, Meta(description="a seed keeps this distance zyx off other objects")] = (
        1,
        1,
        1,
    )
    disco_seed_threshold: Annotated[
        Annotated[float, Meta(ge=0, lt=1)] | None,
        Meta(description="share of the field of view over `move` past which no voxel rises again; null: off"),
    ] = 0.0
    seed_policy: Annotated[SeedPolicyName, Meta(description="where objects start, one of apps.ffn.seeds.POLICIES")] = (
        "peaks"
    )
    max_steps_per_cell: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="stop after this many steps per cell (a box of deltas) of the volume; null: no bound"),
    ] = 1.5

    def check(self) -> None:
        if self.init < self.move:
            raise ParameterError(f"init {self.init} is under move {self.move}: no object could start; raise init")
        if min(self.boundary_distance) < 0:
            raise ParameterError(f"boundary_distance {self.boundary_distance}: expected no negative distance")

    def max_steps(self, shape: Triple, deltas: Triple) -> int | None:
        """Bound on the network's steps over a volume of `shape`; None for none.

        A sound network takes 0.3 to 0.6 steps a cell; one that floods without end would take a multiple.
        """
        if self.max_steps_per_cell is None:
            return None
        cells = math.prod(shape) / math.prod(max(step, 1) for step in deltas)
        return math.ceil(self.max_steps_per_cell * cells)
