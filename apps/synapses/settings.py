"""What a training of the synapses' network is asked for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.synapses.network import NetworkParameters
from apps.unet.settings import BatchSize, LearningRate, Schedule, Steps

_Strength = Annotated[float, Meta(ge=0, le=2)]


class Augmentation(Parameters, frozen=True, kw_only=True):
    """How examples are changed, so that a network trained on one imaging works on another.

    Strengths are in standard deviations of the image's grey values.
    """

    flip: Annotated[bool, Meta(description="along z, y and x, at random")] = True
    rotate: Annotated[
        bool, Meta(description="axes exchanged at random, where voxels and examples are as long along them")
    ] = True
    brightness: Annotated[_Strength, Meta(description="standard deviation of a shift of all grey values")] = 0.1
    contrast: Annotated[_Strength, Meta(description="standard deviation of the logarithm of a factor on them")] = 0.1
    shading: Annotated[_Strength, Meta(description="standard deviation of a shift that changes smoothly")] = 0.1
    noise: Annotated[_Strength, Meta(description="largest standard deviation of noise added to every voxel")] = 0.1


class TrainSettings(Schedule, frozen=True, kw_only=True):
    """What of the annotations is used, the network, and the schedule."""

    boxes: Annotated[
        tuple[Box, ...] | None, Meta(description="annotated voxels to use, each as large as an example; null: all")
    ] = None
    validation_box: Annotated[
        Box | None,
        Meta(description="what to judge on, apart from boxes; null: the last columns (x) of the last box"),
    ] = None
    validation_fraction: Annotated[
        float, Meta(gt=0, lt=1, description="share of these columns that is held out where there is no validation_box")
    ] = 0.2
    network: Annotated[NetworkParameters, Meta(description="the network")] = NetworkParameters()
    augmentation: Annotated[Augmentation, Meta(description="how examples are changed")] = Augmentation()
    patch: Annotated[Triple, Meta(description="extent of an example, zyx")] = (32, 32, 32)
    batch_size: BatchSize = 2
    steps: Steps = 2400
    learning_rate: LearningRate = 0.01
    balanced: Annotated[
        float, Meta(ge=0, le=1, description="share of the examples that hold a part of a cleft for certain")
    ] = 0.6

    def check(self) -> None:
        super().check()
        if self.boxes is not None and not self.boxes:
            raise ParameterError("boxes: are none; give at least one, or null for all")
        for box in (*(self.boxes or ()), *([self.validation_box] if self.validation_box else [])):
            if box.empty:
                raise ParameterError(f"box {box}: is empty; give one with voxels in it")
        if self.validation_box is not None and self.boxes is None:
            raise ParameterError("validation_box: needs boxes too, which say what is trained on")
        for box in self.boxes or ():
            if self.validation_box is not None and not box.intersection(self.validation_box).empty:
                raise ParameterError(f"validation_box {self.validation_box}: has voxels in common with box {box}")
        if any(n < 1 or n % unit for n, unit in zip(self.patch, self.network.unit, strict=True)):
            raise ParameterError(f"patch = {self.patch}: expected multiples of {self.network.unit} (2^poolings)")

    def divide(self, whole: Box) -> tuple[tuple[Box, ...], Box]:
        """(what is trained on, what is judged on) of an annotated volume.

        Raises DataError where a box leaves the volume, or is smaller than an example.
        """
        boxes, judged = self.boxes or (whole,), self.validation_box
        for part in (*boxes, *([judged] if judged else [])):
            if not whole.contains(part):
                raise DataError(f"box {part}: leaves the annotated volume, which is {whole}")
        if judged is None:
            last = boxes[-1]
            split = last.end[2] - max(1, round(last.shape[2] * self.validation_fraction))
            judged = Box.between((*last.offset[:2], split), last.end)
            boxes = (*boxes[:-1], Box.between(last.offset, (*last.end[:2], split)))
        for box in boxes:
            if any(n < p for n, p in zip(box.shape, self.patch, strict=True)):
                raise DataError(f"box {box}: is smaller than an example, {self.patch}; give a larger box or less patch")
        return boxes, judged
