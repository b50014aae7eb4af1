"""Which planner plans a stage's steps.  To give a stage one of its own: write it, add it to `planner_for`."""

from __future__ import annotations

from apps.core.stage import load_stage
from ensemble.pipeline.planners.contract import Planner


def planner_for(stage: str, follow: bool = False) -> Planner:
    """A planner for one step of the stage.  `follow`: sections are being acquired while the pipeline runs."""
    # Only what a pipeline uses is imported: a planner knows its stage, and what that needs.
    if stage == "montage":
        from ensemble.pipeline.planners.montage import MontagePlanner

        return MontagePlanner(follow)
    if stage == "alignment":
        from ensemble.pipeline.planners.alignment import AlignmentPlanner

        return AlignmentPlanner(follow)
    if stage == "masking":
        from ensemble.pipeline.planners.masking import MaskingPlanner

        return MaskingPlanner()
    if load_stage(stage).phases:
        from ensemble.pipeline.planners.phased import PhasedPlanner

        return PhasedPlanner()
    from ensemble.pipeline.planners.single import SinglePlanner

    return SinglePlanner()
