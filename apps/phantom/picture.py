"""The image of a window of tissue: neurites as in the plain phantom, and cell bodies, vessels, resin and synapses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from apps.core.boxes import Box
from apps.phantom.fields import Floats, PlacedNoise, stream
from apps.phantom.rendering import (
    Capsule,
    add_membranes,
    add_mitochondria,
    add_vesicles,
    blur,
    cytoplasm,
    draw_shades,
    draw_vesicles,
    shade,
    vesicle_clusters,
)
from apps.phantom.synapses import Synapses, add_clefts, add_clouds
from apps.phantom.tissue import Cells, Tissue, soma_distance, vessel_distance

VESSEL, SOMA, OUTSIDE = 1, 2, 3  # in the masks; 0 is neuropil

_NUCLEUS = 0.62  # of a cell body's radius
_ENVELOPE = 2.0  # voxels of the nucleus's dark envelope
_SOMA_GREY, _SOMA_GRAIN = 134.0, 9.0  # of the cytoplasm of cell bodies
_NUCLEUS_GREY, _CHROMATIN = 158.0, 13.0
_ENVELOPE_GREY = 84.0
_LUMEN_GREY, _WALL_GREY, _WALL_GRAIN = 214.0, 112.0, 6.0
_WALL = 6.0  # voxels
_RESIN_GREY = 190.0
_CLUSTER_REACH = 40  # voxels from a cluster's middle within which its vesicles lie


@dataclass(frozen=True)
class Contents:
    """What is in the whole block besides its geometry, by place.

    Attributes:
        shades: grey level of the cytoplasm of every cell.
        clusters: float64 [n, 3], middles of clusters of vesicles.
        mitochondria, synapses: where they are.
    """

    shades: Floats
    clusters: NDArray[np.float64]
    mitochondria: list[Capsule]
    synapses: Synapses


def draw_contents(tissue: Tissue, mitochondria: list[Capsule], synapses: Synapses) -> Contents:
    """Contents of the whole block of `tissue`."""
    voxels = int(np.prod(tissue.shape, dtype=np.int64))
    clusters = stream(tissue.seed, "clusters").random((vesicle_clusters(voxels, tissue.design), 3)) * tissue.shape
    shades = draw_shades(stream(tissue.seed, "shades"), tissue.outside + 1, tissue.design)
    return Contents(shades, clusters, mitochondria, synapses)


@dataclass(frozen=True)
class Picture:
    """What a window shows, all zyx: `image` float32 without noise, and by voxel the mask, cleft and vesicle cloud."""

    image: Floats
    masks: NDArray[np.uint8]
    clefts: NDArray[np.uint32]
    clouds: NDArray[np.uint32]


def paint(tissue: Tissue, contents: Contents, window: Box, cells: Cells, depth: Floats) -> Picture:
    """Paint a window, of which are `cells` and `depth` (distance from the sheets; 0 in what is no object)."""
    design, noise = tissue.design, tissue.noise(window)
    image = cytoplasm(noise, cells, contents.shades, design)
    in_neurite = (cells <= tissue.neurites) & (depth > design.membrane_thickness / 2 + 1)
    add_vesicles(image, _clustered_vesicles(tissue, contents, window), in_neurite)
    add_mitochondria(noise, image, depth, _seen_mitochondria(contents, window), design, np.asarray(window.offset))
    masks = np.zeros(window.shape, np.uint8)
    if tissue.somata:
        _add_somata(tissue, noise, image, masks, window, cells)
    if tissue.vessels:
        _add_vessels(tissue, noise, image, masks, window, cells)
    if design.resin:
        resin = cells == tissue.outside
        image[resin], masks[resin] = _RESIN_GREY, OUTSIDE
    clouds = add_clouds(tissue, image, window, cells, depth, contents.synapses)
    add_membranes(noise, image, depth, design, threshold=float(special.ndtri(1 - design.membrane_fading)))
    clefts = add_clefts(image, window, cells, depth, contents.synapses)
    return Picture(blur(shade(noise, image, design), design), masks, clefts, clouds)


def _clustered_vesicles(tissue: Tissue, contents: Contents, window: Box) -> NDArray[np.float64]:
    """Centres [clusters, vesicles, 3] of the clusters' vesicles in and around the window, from its first voxel."""
    wide = window.grow((_CLUSTER_REACH,) * 3)
    seen = np.flatnonzero(np.all((contents.clusters >= wide.offset) & (contents.clusters < wide.end), axis=1))
    drawn = [
        draw_vesicles(stream(tissue.seed, "vesicles", int(number)), contents.clusters[number][None, None])
        for number in seen
    ]
    return np.concatenate(drawn) - window.offset if drawn else np.zeros((0, 1, 3))


def _seen_mitochondria(contents: Contents, window: Box) -> list[Capsule]:
    def seen(capsule: Capsule) -> bool:
        reach = capsule.radii.max()
        low, high = capsule.centres.min(axis=0) - reach, capsule.centres.max(axis=0) + reach
        return bool(np.all(high >= window.offset) and np.all(low < window.end))

    return [capsule for capsule in contents.mitochondria if seen(capsule)]


def _add_somata(
    tissue: Tissue, noise: PlacedNoise, image: Floats, masks: NDArray[np.uint8], window: Box, cells: Cells
) -> None:
    """Granular cytoplasm, and a nucleus of mottled chromatin in a dark envelope."""
    distance, neurite = soma_distance(tissue, window)
    inside = (neurite > 0) & (neurite == cells)
    if not inside.any():
        return
    masks[inside] = SOMA
    image[inside] = _SOMA_GREY + _SOMA_GRAIN * noise.smooth("ribosomes", 1.4)[inside]
    nucleus = inside & (distance < _NUCLEUS)
    image[nucleus] = _NUCLEUS_GREY + _CHROMATIN * noise.smooth("chromatin", 5.0)[nucleus]
    # The envelope is as thick in large cell bodies as in small ones.
    radius = np.zeros(tissue.outside + 1, np.float32)
    for soma in tissue.somata:
        radius[soma.neurite] = soma.radius
    image[inside & (np.abs(distance - _NUCLEUS) * radius[cells] < _ENVELOPE / 2)] = _ENVELOPE_GREY


def _add_vessels(
    tissue: Tissue, noise: PlacedNoise, image: Floats, masks: NDArray[np.uint8], window: Box, cells: Cells
) -> None:
    """A bright, empty lumen in a wall of endothelium."""
    vessel = cells == tissue.vessel
    if not vessel.any():
        return
    masks[vessel] = VESSEL
    distance = vessel_distance(tissue, window)
    image[vessel] = _WALL_GREY + _WALL_GRAIN * noise.smooth("endothelium", 2.0)[vessel]
    mean_radius = sum(tissue.design.vessel_diameter) / 4
    image[vessel & (distance < 1 - _WALL / mean_radius)] = _LUMEN_GREY
