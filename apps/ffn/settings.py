"""Settings of flood filling: what the inference and trial stages, and the engine, take."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.ffn.model import Precision
from apps.ffn.seeds import GRID_STEP, SeedPolicyName

Mode = Literal["faithful", "fast"]

# What the fast mode does where nothing else is said.
FAST_PRECISION: Precision = "bfloat16"


class InferenceSettings(Parameters, frozen=True, kw_only=True):
    """Settings of flood filling; the defaults are google/ffn's FIB-25 sample configuration."""

    mode: Annotated[
        Mode, Meta(description="faithful: the published algorithm step for step; fast: see precision, fovs_per_object")
    ] = "faithful"
    precision: Annotated[
        Precision | None, Meta(description="of the network; null: float32 when faithful, bfloat16 when fast")
    ] = None
    fovs_per_object: Annotated[
        int, Meta(ge=1, le=1024, description="fields of view of one object looked at together; over 1 needs mode fast")
    ] = 1
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
    grid_step: Annotated[int, Meta(ge=1, description="of seed policy grid: voxels between seeds")] = GRID_STEP
    seed_separation: Annotated[
        int, Meta(ge=0, description="of seed policy maximum: voxels that a seed is the brightest of; 0: every voxel")
    ] = 0
    reverse_seeds: Annotated[bool, Meta(description="take the seeds of the policy in the reverse order")] = False
    max_steps_per_cell: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="stop after this many steps per cell (a box of deltas) of the volume; null: no bound"),
    ] = 1.5

    def check(self) -> None:
        if self.init < self.move:
            raise ParameterError(f"init {self.init} is under move {self.move}: no object could start; raise init")
        if min(self.boundary_distance) < 0:
            raise ParameterError(f"boundary_distance {self.boundary_distance}: expected no negative distance")
        if self.mode == "faithful" and (self.network_precision, self.fovs_per_object) != ("float32", 1):
            raise ParameterError(
                f"mode faithful with precision {self.network_precision} and fovs_per_object {self.fovs_per_object}: "
                "the published algorithm is float32 with 1; choose mode fast, or leave both out"
            )

    @property
    def network_precision(self) -> Precision:
        """What the network computes in."""
        return self.precision or ("float32" if self.mode == "faithful" else FAST_PRECISION)

    def max_steps(self, shape: Triple, deltas: Triple) -> int | None:
        """Bound on the network's steps over a volume of `shape`; None for none.

        A sound network takes 0.3 to 0.6 steps a cell; one that floods without end would take a multiple.
        """
        if self.max_steps_per_cell is None:
            return None
        cells = math.prod(shape) / math.prod(max(step, 1) for step in deltas)
        return math.ceil(self.max_steps_per_cell * cells)
