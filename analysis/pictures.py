"""Pictures of slices: a grey image, and labels laid over it in colours that do not change from run to run."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.errors import AnalysisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Slice = NDArray[Any]
Colours = NDArray[np.uint8]

OPACITY = 0.45
_GOLDEN = 0.6180339887498949  # steps of the golden ratio spread hues evenly, however many ids there are


def grey(image: Slice) -> Colours:
    """A slice [y, x] as RGB [y, x, 3], stretched from its 0.5th to its 99.5th percentile."""
    _check_slice("image", image)
    low, high = np.percentile(image, (0.5, 99.5))
    stretched = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    return np.repeat((stretched * 255).round().astype(np.uint8)[..., None], 3, axis=2)


def overlay(image: Slice, labels: Slice, seed: int = 0) -> Colours:
    """Labels [y, x] (0: no object) in colour over a grey image [y, x], as RGB [y, x, 3].

    What has no object, membranes as a rule, stays grey; where two objects touch, a dark line parts them.
    """
    _check_slice("labels", labels)
    if labels.shape != image.shape:
        raise AnalysisError(f"labels of shape {labels.shape}: expected the image's shape {image.shape}")
    ground = grey(image).astype(np.float64)
    mixed = (1 - OPACITY) * ground + OPACITY * colours(labels, seed)
    picture = np.where((labels == 0)[..., None], ground, mixed)
    picture[_touching(labels)] *= 0.35
    return picture.round().astype(np.uint8)


def colours(labels: Slice, seed: int = 0) -> Colours:
    """A colour for each label: the same label and seed give the same colour; RGB along a new last axis."""
    number = labels.astype(np.uint64).astype(np.float64) + np.random.default_rng(seed).random()
    hue = (number * _GOLDEN) % 1.0
    # Neighbouring hues differ in brightness and saturation too, by two further irrational steps.
    value = 0.75 + 0.25 * ((number * 0.7548776662466927) % 1.0)
    saturation = 0.6 + 0.4 * ((number * 0.5698402909980532) % 1.0)
    return _rgb(hue, saturation, value)


def figure_uri(figure: Figure, dpi: int = 150) -> str:
    """A matplotlib figure as a data URI: PNG with a palette of 128 colours, a third of the size of one without."""
    from PIL import Image

    plain, small = io.BytesIO(), io.BytesIO()
    figure.savefig(plain, format="png", dpi=dpi)
    with Image.open(plain) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return data_uri(small.getvalue())


def match_ids(segmentation: Slice, truth: Slice) -> Slice:
    """Renumber objects after the truth's, where each is the other's largest overlap, so that they share a colour.

    All other objects get ids that the truth does not use: a fragment or a merger shows as a colour of its own.
    """
    found, numbers = np.unique(segmentation, return_inverse=True)
    fresh = np.uint64(int(truth.max(initial=0)) + 1) + np.arange(len(found), dtype=np.uint64)
    fresh[found == 0] = 0
    both = (segmentation.ravel() != 0) & (truth.ravel() != 0)
    pairs = np.stack([numbers.ravel()[both], truth.ravel()[both].astype(np.int64)], axis=1)
    meetings, voxels = np.unique(pairs, axis=0, return_counts=True)
    taken_objects: set[int] = set()
    taken_truth: set[int] = set()
    for place in np.argsort(-voxels, kind="stable"):
        here, there = int(meetings[place, 0]), int(meetings[place, 1])
        if here not in taken_objects and there not in taken_truth:
            fresh[here] = there
        taken_objects.add(here)
        taken_truth.add(there)
    matched: Slice = fresh[numbers].reshape(segmentation.shape)
    return matched


def png_uri(picture: Colours) -> str:
    """An RGB picture [y, x, 3] as a data URI."""
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(picture), format="png")
    return data_uri(stream.getvalue())


def data_uri(png: bytes) -> str:
    """PNG bytes as a data URI, for a page that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _touching(labels: Slice) -> NDArray[np.bool_]:
    """True at voxels whose right or lower neighbour belongs to another object."""
    edge = np.zeros(labels.shape, bool)
    objects = labels != 0
    edge[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & objects[:, :-1] & objects[:, 1:]
    edge[:-1] |= (labels[:-1] != labels[1:]) & objects[:-1] & objects[1:]
    return edge


def _rgb(hue: NDArray[np.float64], saturation: NDArray[np.float64], value: NDArray[np.float64]) -> Colours:
    """HSV in [0, 1] to RGB in [0, 255]."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue[..., None]) % 6.0
    share = np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    rgb = value[..., None] * (1.0 - saturation[..., None] * share)
    return (255 * rgb).round().astype(np.uint8)


def _check_slice(name: str, array: Slice) -> None:
    if array.ndim != 2 or array.size == 0:
        raise AnalysisError(f"{name} of shape {array.shape}: expected a slice with two axes (y, x)")
