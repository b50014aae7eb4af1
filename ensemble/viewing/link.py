"""The viewer's state: what neuroglancer shows, where, and from which addresses.  Pure functions.

Positions are in voxels of the image (of the segmentation where there is none), x, y, z.  Neuroglancer counts from a
voxel's corner, and takes OME-Zarr, whose voxels are placed by their centres, half a voxel back; here all layers are
moved so that voxel 0 begins at 0, as meshes, skeletons and precomputed volumes have it, wherever OME-Zarr's metadata
place it.
"""

from __future__ import annotations

from typing import Any

from apps.core.volumes import VoxelSize
from ensemble.viewing.annotations import POINTS, dimensions
from ensemble.viewing.glance import Glance
from ensemble.viewing.stores import EXTENT_WITHOUT_LEVELS, OpenStores, Point, ShownVolume
from ensemble.viewing.synapse_index import CENTRE

# Pixels of a panel that the volume is to fit into, at first.
PANEL = 300
MESH_UNIT: VoxelSize = (1.0, 1.0, 1.0)
SYNAPSE_SHADER = """#uicontrol float least_confidence slider(min=0, max=1, default=0)
void main() {
  if (prop_confidence() < least_confidence) discard;
  setColor(vec3(1.0, 0.9, 0.2));
  setEndpointMarkerColor(vec3(0.2, 0.6, 1.0), vec3(1.0, 0.3, 0.2));
  setEndpointMarkerSize(6.0);
}
"""

State = dict[str, Any]


def viewer_state(stores: OpenStores, glance: Glance, address: str, title: str = "") -> State:
    """The state, as plain JSON, of a viewer that finds every store at `address`/NAME (see OpenStores.folders)."""
    grid = stores.grid
    shown = "segmentation" if stores.segmentation else next(iter(stores.volumes))
    volume = stores.volumes[shown]
    lower, extent = stores.begin(shown), volume.shape
    size = volume.voxel_size_nm
    nm = [s * (low + n / 2) for low, n, s in zip(lower, extent, size, strict=True)]
    unit = min(grid.voxel_size_nm)
    widest = max(n * s for n, s in zip(extent, size, strict=True)) / unit
    seen = min(widest, EXTENT_WITHOUT_LEVELS) if any(v.slow for v in stores.volumes.values()) else widest
    return {
        "title": title,
        "dimensions": dimensions(grid.voxel_size_nm),
        "position": [centre / s for centre, s in zip(nm, grid.voxel_size_nm, strict=True)][::-1],
        "crossSectionScale": seen / PANEL,
        "projectionScale": widest * 1.7,
        "projectionOrientation": [0.3, 0.2, 0.0, 0.93],
        "showSlices": stores.meshes is None and stores.skeletons is None,
        "layers": _layers(stores, glance, address),
        "selectedLayer": {"layer": shown},
        "layout": "4panel-alt",
    }


def _layers(stores: OpenStores, glance: Glance, address: str) -> list[State]:
    layers: list[State] = []
    if stores.image is not None:
        layer: State = {"type": "image", "name": "image", "source": _volume("image", stores, address)}
        if glance.grey is not None:
            layer["shaderControls"] = {"normalized": {"range": list(glance.grey)}}
        layers.append(layer)
    if stores.segmentation is not None:
        layers.append(_segmentation(stores, glance, address))
        layers += [_in_space(name, stores, address) for name in ("meshes", "skeletons") if getattr(stores, name)]
    if stores.labels is not None:
        source = _volume("labels", stores, address)
        layers.append({"type": "segmentation", "name": "labels", "source": source, "visible": False})
    if stores.synapses is not None:
        layers.append(_synapses(stores, address))
    return layers


def _segmentation(stores: OpenStores, glance: Glance, address: str) -> State:
    volume = _volume("segmentation", stores, address)
    listed = f"precomputed://{address}/meshes/{stores.properties}"  # its panel then has the list of all objects
    return {
        "type": "segmentation",
        "name": "segmentation",
        "source": volume if stores.properties is None else [volume, listed],
        "segments": [str(number) for number in glance.segments],
        "selectedAlpha": 0.45,
        "notSelectedAlpha": 0.2,
    }


def _in_space(name: str, stores: OpenStores, address: str) -> State:
    """Meshes or skeletons: layers of their own, to be shown and hidden alone, of the objects selected in the
    segmentation and in their colours."""
    segmentation = stores.segmentation
    assert segmentation is not None
    # Made of Zarr they are placed as its voxels are counted, of a precomputed volume as its metadata place it.
    zero = segmentation.origin if segmentation.format == "precomputed" else (0.0, 0.0, 0.0)
    moved = zip(stores.begin("segmentation"), zero, segmentation.voxel_size_nm, strict=True)
    z, y, x = ((begin - start) * size for begin, start, size in moved)
    return {
        "type": "segmentation",
        "name": name,
        "source": _source(f"precomputed://{address}/{name}", MESH_UNIT, (z, y, x)),
        "linkedSegmentationGroup": "segmentation",
    }


def _synapses(stores: OpenStores, address: str) -> State:
    layer: State = {
        "type": "annotation",
        "name": "synapses",
        "source": f"precomputed://{address}/synapses",
        "shader": SYNAPSE_SHADER,
    }
    if stores.segmentation is not None:
        # Selecting a neuron can narrow the layer down to its synapses: the layer's panel has the switches.
        layer["linkedSegmentationLayer"] = dict.fromkeys(POINTS, "segmentation")
    return layer


def _volume(name: str, stores: OpenStores, address: str) -> State:
    volume: ShownVolume = stores.volumes[name]
    centred = CENTRE if volume.format == "zarr3" else 0.0
    z, y, x = (begin - o + centred for begin, o in zip(stores.begin(name), volume.origin, strict=True))
    return _source(f"{volume.format}://{address}/{name}", volume.voxel_size_nm, (z, y, x))


def _source(url: str, unit_nm: VoxelSize, moved: Point) -> State:
    """A source, moved by `moved` (zyx, in units of `unit_nm` zyx); its own axes are zyx in Zarr, xyz in precomputed."""
    space = dimensions(unit_nm)
    axes = "zyx" if url.startswith("zarr3:") else "xyz"
    move = dict(zip("zyx", moved, strict=True))
    matrix = [[float(row == column) for column in axes] + [move[row]] for row in axes]
    return {"url": url, "transform": {"outputDimensions": {axis: space[axis] for axis in axes}, "matrix": matrix}}
