"""What a training of the masks' network is asked for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.masking.network import NetworkParameters
from apps.unet.settings import BatchSize, LearningRate, Schedule, Steps

_Strength = Annotated[float, Meta(ge=0, le=2)]


class Augmentation(Parameters, frozen=True, kw_only=True):
    """How examples are changed, so that a network trained on one imaging works on another.

    Strengths are in standard deviations of the section's grey values.
    """

    flip: Annotated[bool, Meta(description="along y and x, at random")] = True
    rotate: Annotated[bool, Meta(description="by quarter turns, at random")] = True
    zoom: Annotated[float, Meta(ge=1, le=2, description="larger or smaller by up to this factor, at random")] = 1.15
    brightness: Annotated[_Strength, Meta(description="standard deviation of a shift of all grey values")] = 0.2
    contrast: Annotated[_Strength, Meta(description="standard deviation of the logarithm of a factor on them")] = 0.15
    shading: Annotated[_Strength, Meta(description="standard deviation of a shift that changes smoothly")] = 0.15
    noise: Annotated[_Strength, Meta(description="largest standard deviation of noise added to every pixel")] = 0.3
    blank: Annotated[
        float, Meta(ge=0, le=1, description="share of the examples of which a part is blanked, as beyond a section")
    ] = 0.15


class TrainSettings(Schedule, frozen=True, kw_only=True):
    """What of the annotations is used, the network, and the schedule."""

    box: Annotated[Box | None, Meta(description="annotated voxels to use; null: all")] = None
    validation_box: Annotated[
        Box | None, Meta(description="what to judge on, apart from box; null: the last columns (x) of box")
    ] = None
    validation_fraction: Annotated[
        float, Meta(gt=0, lt=1, description="share of the columns that is held out where there is no validation_box")
    ] = 0.2
    network: Annotated[NetworkParameters, Meta(description="the network")] = NetworkParameters()
    augmentation: Annotated[Augmentation, Meta(description="how examples are changed")] = Augmentation()
    patch: Annotated[int, Meta(ge=32, le=4096, description="extent of an example (y and x), in pixels")] = 256
    batch_size: BatchSize = 6
    steps: Steps = 900
    learning_rate: LearningRate = 6e-3
    balanced: Annotated[
        float, Meta(ge=0, le=1, description="share of the examples that are centred on a class drawn evenly")
    ] = 0.75

    def check(self) -> None:
        super().check()
        for name, box in (("box", self.box), ("validation_box", self.validation_box)):
            if box is not None and box.empty:
                raise ParameterError(f"{name} {box}: is empty; give one with voxels in it")
        if self.validation_box is not None and self.box is None:
            raise ParameterError("validation_box: needs box too, which says what is trained on")
        if self.box is not None and self.validation_box is not None:
            common = self.box.intersection(self.validation_box)
            if not common.empty:
                raise ParameterError(
                    f"validation_box {self.validation_box}: has {common} in common with box {self.box}"
                )
        if self.patch % self.network.unit:
            raise ParameterError(
                f"patch = {self.patch}: expected a multiple of {self.network.unit} (downsample x 2^poolings)"
            )

    def divide(self, whole: Box) -> tuple[Box, Box]:
        """(what is trained on, what is judged on) of an annotated volume.

        Raises DataError where a box leaves the volume, or is too narrow to hold columns out.
        """
        box = whole if self.box is None else self.box
        for part in (box, self.validation_box):
            if part is not None and not whole.contains(part):
                raise DataError(f"box {part}: leaves the annotated volume, which is {whole}")
        if self.validation_box is not None:
            return box, self.validation_box
        width = box.shape[2]
        held_out = max(1, round(width * self.validation_fraction))
        if held_out >= width:
            raise DataError(f"box {box}: is too narrow to hold out columns; give a wider one, or a validation_box")
        split = box.end[2] - held_out
        return Box.between(box.offset, (*box.end[:2], split)), Box.between((*box.offset[:2], split), box.end)
