"""The phantom: well-defined truth, an image that looks like its truth, the same bytes for the same seed."""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.phantom.design import PhantomDesign
from apps.phantom.fields import paint_balls, smooth_noise
from apps.phantom.neurites import grow_neurites
from apps.phantom.stage import STAGE, PhantomParameters, generate, run

SHAPE = (48, 64, 72)
Block = tuple[NDArray[np.uint8], NDArray[np.uint32]]


@pytest.fixture(scope="module")
def block() -> Block:
    return generate(SHAPE, 3, PhantomDesign())


def test_the_example_is_valid() -> None:
    assert PhantomParameters.from_json(STAGE.example).shape == (96, 160, 224)


def test_same_seed_same_bytes_and_another_seed_others(block: Block) -> None:
    image, labels = generate(SHAPE, 3, PhantomDesign())
    assert np.array_equal(image, block[0]) and np.array_equal(labels, block[1])
    assert not np.array_equal(generate(SHAPE, 4, PhantomDesign())[0], image)


def test_appearance_does_not_change_geometry(block: Block) -> None:
    plain = PhantomDesign(noise=0.0, shading=0.0, mitochondria=0.0, vesicle_clusters=0.0, membrane_fading=0.0)
    assert np.array_equal(generate(SHAPE, 3, plain)[1], block[1])


def test_every_label_is_one_component_numbered_without_gaps(block: Block) -> None:
    labels = block[1]
    assert labels.dtype == np.uint32
    objects = int(labels.max())
    assert set(np.unique(labels)) == set(range(objects + 1))
    assert cc3d.connected_components(labels, connectivity=6).max() == objects
    assert np.bincount(labels.ravel())[1:].min() >= PhantomDesign().smallest_object


def test_no_two_objects_touch(block: Block) -> None:
    labels = block[1].astype(np.int64)
    for axis in range(3):
        near = np.take(labels, range(SHAPE[axis] - 1), axis)
        far = np.take(labels, range(1, SHAPE[axis]), axis)
        assert not ((near != far) & (near > 0) & (far > 0)).any()


def test_the_image_resembles_em(block: Block) -> None:
    image, labels = block
    assert image.dtype == np.uint8 and image.shape == SHAPE
    assert 110 < image.mean() < 160 and 20 < image.std() < 45  # FIB-25: 130.5 and 33.5
    assert 0.5 < (labels > 0).mean() < 0.9
    depth = ndimage.distance_transform_edt(labels > 0)
    assert np.median(image[depth > 3]) - np.median(image[labels == 0]) > 30  # dark membranes, bright cytoplasm


def test_organelles_are_dark_inside_of_objects() -> None:
    shape, crowded = (64, 64, 64), PhantomDesign(mitochondria=40.0, calibre=40.0)
    empty = PhantomDesign(mitochondria=0.0, calibre=40.0)
    with_image, labels = generate(shape, 1, crowded)
    without_image, _ = generate(shape, 1, empty)
    inside = ndimage.distance_transform_edt(labels > 0) > 5
    assert (with_image[inside] < 100).sum() > 500 + (without_image[inside] < 100).sum()


def test_faded_membranes_have_less_contrast() -> None:
    still = dict.fromkeys(
        ("noise", "texture", "shading", "mitochondria", "vesicle_clusters", "cytoplasm_variation"), 0.0
    )
    sharp, labels = generate(SHAPE, 5, PhantomDesign.from_json({"membrane_fading": 0.0, **still}))
    faded, _ = generate(SHAPE, 5, PhantomDesign.from_json({"membrane_fading": 0.3, "faded_contrast": 0.0, **still}))
    brighter = (faded.astype(int) - sharp > 15)[labels == 0].mean()
    assert 0.15 < brighter < 0.45


def test_thin_processes_run_through_larger_neurites() -> None:
    rng = np.random.default_rng(0)
    alone = grow_neurites(np.random.default_rng(0), (64, 64, 64), PhantomDesign(thin_processes=0.0, calibre=40.0))
    pierced = grow_neurites(rng, (64, 64, 64), PhantomDesign(thin_processes=30.0, calibre=40.0))
    thin = pierced.cells > alone.cells.max()
    assert thin.any()
    held = set(np.unique(alone.cells[thin]))
    assert held & set(np.unique(pierced.cells[~thin]))  # what they run through is still there around them


def test_smooth_noise_has_unit_spread_and_the_asked_length() -> None:
    field = smooth_noise(np.random.default_rng(0), (64, 64, 64), 4.0)
    assert field.shape == (64, 64, 64) and field.dtype == np.float32
    assert abs(field.std() - 1) < 0.25
    # A Gaussian filter of standard deviation s gives the correlation exp(-d^2 / (4 s^2)) at distance d.
    assert abs((field[:-4] * field[4:]).mean() / field.var() - np.exp(-0.25)) < 0.12


def test_painted_balls_belong_to_the_nearer_centre() -> None:
    centres, radii = np.array([[4.0, 4, 3], [4.0, 4, 7], [100.0, 4, 4]]), np.array([3.0, 3.0, 3.0])
    depth, owner = paint_balls((9, 9, 11), centres, radii, np.array([1, 2, 3], np.int32))
    assert owner[4, 4, 3] == 1 and owner[4, 4, 7] == 2 and owner[0, 0, 0] == 0 and set(np.unique(owner)) == {0, 1, 2}
    assert depth[4, 4, 3] == 0 and depth[4, 4, 4] == pytest.approx(1 / 3) and depth[0, 0, 0] == 1


def test_run_writes_both_volumes(tmp_path: Path) -> None:
    said: list[str] = []
    parameters = PhantomParameters(output=str(tmp_path / "ph"), shape=(32, 40, 48), voxel_size_nm=(8.0, 8.0, 8.0))
    result = run(parameters, lambda done, total, what="": said.append(what))
    image, labels = open_volume(result.image), open_volume(result.labels)
    assert image.shape == labels.shape == (32, 40, 48)
    assert image.dtype == np.uint8 and labels.dtype == np.uint32 and image.voxel_size_nm == (8.0, 8.0, 8.0)
    truth = labels.read()
    assert result.objects == truth.max() and result.labelled_fraction == pytest.approx((truth > 0).mean())
    assert "growing neurites" in said
    run(parameters, silent)
    assert np.array_equal(open_volume(result.image).read(), image.read())
    assert sorted(path.name for path in (tmp_path / "ph").iterdir()) == ["image.zarr", "labels.zarr"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shape": (8, 64, 64)}, "at least 16"),
        ({"seed": -1}, "seed"),
        ({"voxel_size_nm": (0.0, 1.0, 1.0)}, "voxel_size_nm"),
        ({"output": ""}, "output"),
    ],
)
def test_bad_parameters_are_named(change: dict[str, object], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        PhantomParameters.from_json({"output": "x", **change})


def test_a_design_must_leave_room_in_thin_processes() -> None:
    with pytest.raises(ParameterError, match="thin_diameter"):
        PhantomDesign(thin_diameter=(3.0, 8.0), membrane_thickness=4.0)
    with pytest.raises(ParameterError, match="thin_diameter"):
        PhantomDesign(thin_diameter=(12.0, 8.0))


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="taken"):
        run(PhantomParameters(output=str(tmp_path / "taken"), shape=(16, 16, 16)), silent)


def test_a_box_without_an_object_is_refused(tmp_path: Path) -> None:
    design = PhantomDesign(smallest_object=10**6)
    with pytest.raises(DataError, match="no object"):
        run(PhantomParameters(output=str(tmp_path / "none"), shape=(16, 16, 16), design=design), silent)
    assert not list((tmp_path / "none").iterdir())
