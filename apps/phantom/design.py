"""What a phantom looks like: the numbers that its geometry and its rendering follow."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]


class PhantomDesign(Parameters, frozen=True, kw_only=True):
    """Lengths are in voxels, intensities in grey levels of 0 to 255.

    Mean, spread and membrane contrast of the defaults resemble FIB-25 (Drosophila medulla, FIB-SEM, 10 nm).  They are
    chosen so that minutes of training show: brightness drifts by more than the membranes' contrast, which defeats any
    one threshold and leaves edges to learn; organelles and faded membranes, which take a network hours, are few.
    """

    calibre: Annotated[float, Meta(ge=6.0, le=200.0, description="mean diameter of the space-filling neurites")] = 20.0
    calibre_variation: Annotated[
        Fraction, Meta(description="spread of the calibre between neurites and along one (varicosities), log scale")
    ] = 0.3
    tortuosity: Annotated[Fraction, Meta(description="how much neurites wind: 0 straight, 1 like wool")] = 0.35
    branching: Annotated[Fraction, Meta(description="fraction of the neurites' paths that branch off another")] = 0.25
    thin_processes: Annotated[
        float, Meta(ge=0.0, description="thin processes that run through larger neurites, per million voxels")
    ] = 1.0
    thin_diameter: Annotated[
        tuple[float, float], Meta(description="smallest and largest diameter of thin processes, membranes included")
    ] = (10.0, 14.0)
    membrane_thickness: Annotated[
        float, Meta(ge=1.0, le=20.0, description="thickness of the dark sheet between two neurites (label 0)")
    ] = 4.5
    membrane_intensity: Annotated[float, Meta(ge=0.0, le=255.0, description="grey level of a plain membrane")] = 88.0
    membrane_fading: Annotated[
        Fraction, Meta(description="fraction of the membranes' area that lost contrast (cut obliquely, poor stain)")
    ] = 0.0
    faded_contrast: Annotated[
        Fraction, Meta(description="contrast that is left where a membrane is faded, 1 being that of a plain one")
    ] = 0.45
    faded_patch: Annotated[
        float, Meta(ge=1.0, le=50.0, description="length over which fading comes and goes: the size of a patch")
    ] = 3.0
    cytoplasm_intensity: Annotated[float, Meta(ge=0.0, le=255.0, description="mean grey level of cytoplasm")] = 160.0
    cytoplasm_variation: Annotated[
        float, Meta(ge=0.0, le=100.0, description="standard deviation between neurites (electron-lucent to dense)")
    ] = 10.0
    texture: Annotated[
        float, Meta(ge=0.0, le=100.0, description="standard deviation of the cytoplasm's texture in one neurite")
    ] = 5.0
    shading: Annotated[
        float, Meta(ge=0.0, le=100.0, description="standard deviation of slow brightness changes (charging, staining)")
    ] = 30.0
    shading_length: Annotated[float, Meta(ge=4.0, le=1000.0, description="length over which the brightness drifts")] = (
        25.0
    )
    mitochondria: Annotated[float, Meta(ge=0.0, le=50.0, description="mitochondria per million voxels")] = 1.0
    vesicle_clusters: Annotated[float, Meta(ge=0.0, le=200.0, description="vesicle clusters per million voxels")] = 6.0
    blur: Annotated[float, Meta(ge=0.0, le=5.0, description="standard deviation of the point spread function")] = 0.7
    noise: Annotated[float, Meta(ge=0.0, le=100.0, description="standard deviation of the detector noise")] = 12.0
    smallest_object: Annotated[
        int, Meta(ge=1, description="label components under this many voxels become label 0 and render as membrane")
    ] = 300
    somata: Annotated[float, Meta(ge=0.0, le=50.0, description="cell bodies per million voxels")] = 0.0
    soma_diameter: Annotated[tuple[float, float], Meta(description="smallest and largest diameter of a cell body")] = (
        56.0,
        80.0,
    )
    vessels: Annotated[int, Meta(ge=0, le=1000, description="blood vessels that cross the block")] = 0
    vessel_diameter: Annotated[
        tuple[float, float], Meta(description="smallest and largest diameter of a blood vessel, wall included")
    ] = (32.0, 56.0)
    synapses: Annotated[float, Meta(ge=0.0, le=500.0, description="synapses looked for, per million voxels")] = 0.0
    synapse_diameter: Annotated[
        tuple[float, float], Meta(description="smallest and largest diameter of a synaptic cleft")
    ] = (10.0, 18.0)
    resin: Annotated[
        float, Meta(ge=0.0, description="mean width of the empty resin around the tissue, at the y and x borders")
    ] = 0.0

    @property
    def plain(self) -> bool:
        """True where there are neurites only: no cell body, vessel, synapse or resin."""
        return not (self.somata or self.vessels or self.synapses or self.resin)

    def check(self) -> None:
        for name in ("thin_diameter", "soma_diameter", "vessel_diameter", "synapse_diameter"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ParameterError(f"{name} {(low, high)}: expected a positive smallest and largest")
        low, _ = self.thin_diameter
        if low <= self.membrane_thickness:
            raise ParameterError(
                f"thin_diameter {self.thin_diameter}: expected more than membrane_thickness {self.membrane_thickness}, "
                "or nothing of the process is left inside its membranes"
            )
