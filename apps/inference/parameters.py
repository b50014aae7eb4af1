"""What every stage that floods with a trained network is asked for: the image, the network, and how."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.parameters import Parameters
from apps.core.volumes import VoxelSize
from apps.ffn.applicability import check_voxel_size
from apps.ffn.checkpoint import Checkpoint, load_checkpoint
from apps.ffn.masks import MaskParameters
from apps.ffn.settings import InferenceSettings
from apps.inference.segment import CanvasKind


class FloodingParameters(Parameters, frozen=True, kw_only=True):
    """An image, a network, and how it floods."""

    image: Annotated[str, Meta(description="image volume, uint8: NAME.zarr or FILE.h5:DATASET")]
    model: Annotated[str, Meta(description="checkpoint folder, or prefix of a google/ffn checkpoint")]
    settings: Annotated[InferenceSettings, Meta(description="mode, thresholds and limits of flood filling")] = (
        InferenceSettings()
    )
    masks: Annotated[
        tuple[MaskParameters, ...], Meta(description="volumes that say where no object may be (vessels, no tissue)")
    ] = ()
    canvas: Annotated[
        CanvasKind, Meta(description="where object maps are kept: host, device (TensorFlow's), auto: device on a GPU")
    ] = "auto"
    batch: Annotated[int, Meta(ge=1, le=4096, description="fields of view a call of the network, on the device")] = 64
    fov: Annotated[Triple | None, Meta(description="field of view zyx; null: the model's, 33 for google/ffn")] = None
    deltas: Annotated[Triple | None, Meta(description="deltas zyx; null: the model's, 8 for google/ffn")] = None
    image_mean: Annotated[float | None, Meta(description="null: the model's; google/ffn's hold none")] = None
    image_std: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="null: the model's; google/ffn's hold none")
    ] = None
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of the network's backend")] = 1
    any_voxel_size: Annotated[
        bool, Meta(description="take an image whose voxels are not as long as those that the model was trained at")
    ] = False

    def load_checkpoint(self) -> Checkpoint:
        """The network.  Raises DataError where it is missing or damaged."""
        return load_checkpoint(self.model, self.fov, self.deltas)

    def normalisation(self, checkpoint: Checkpoint) -> tuple[float, float]:
        """(mean, standard deviation) of the image.  Raises ParameterError where neither these nor the model say it."""
        return checkpoint.normalisation(self.image_mean, self.image_std)

    def check_voxel_size(self, checkpoint: Checkpoint, voxel_size_nm: VoxelSize | None) -> None:
        """Raise DataError where the image has other voxels (zyx, nm; None: not known) than the network learnt from."""
        if not self.any_voxel_size:
            check_voxel_size(self.image, voxel_size_nm, self.model, checkpoint.voxel_size_nm)
