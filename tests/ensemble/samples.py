"""Small objects that several tests need."""

from __future__ import annotations

from apps.core.boxes import Box
from ensemble.campaigns import CampaignData


def campaign_data(init: str | None = None) -> CampaignData:
    """Prepared data whose files do not exist."""
    box = Box(offset=(0, 0, 0), shape=(1, 1, 1))
    return CampaignData(
        image="i.zarr",
        labels="l.zarr",
        coordinates="c.npz",
        image_mean=128.0,
        image_std=33.0,
        voxel_size_nm=(10.0, 10.0, 10.0),
        data_hash="abc",
        training_box=box,
        validation_box=box,
        test_box=box,
        fov=(13, 13, 13),
        deltas=(3, 3, 3),
        trivial_answers={"nothing": {"vi": 2.0}},
        init=init,
    )
