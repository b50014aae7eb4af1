"""The picture of a mask over its image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.core.errors import DataError
from apps.core.volumes import write_volume
from apps.masking.picture import COLOURS, main, mask_over_image

GREY = 100


def volumes(folder: Path, shape: tuple[int, int, int] = (2, 40, 60), **others: Any) -> tuple[str, str]:
    """Masks with a vessel, a soma and a strip out of tissue on plane 1 of a grey image."""
    masks = np.zeros(shape, np.uint8)
    masks[1, :10, :10], masks[1, 20:30, 20:30], masks[1, :, -5:] = 1, 2, 3
    image = np.full(shape, GREY, np.uint8)
    for name, data in (("masks", masks), ("image", image)):
        write_volume(folder / f"{name}.zarr", others.get(name, data), (40, 8, 8), (1, 16, 16))
    return str(folder / "masks.zarr"), str(folder / "image.zarr")


def test_classes_have_their_colours_and_the_image_stays(tmp_path: Path) -> None:
    masks, image = volumes(tmp_path)
    assert main([masks, image, "1", str(tmp_path / "picture.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    assert picture.shape == (40, 60 + 8 + 60, 3)
    assert (picture[:, :60] == GREY).all() and (picture[:, 60:68] == 255).all()
    right = picture[:, 68:]
    for place, kind in (((5, 5), 1), ((25, 25), 2), ((5, 57), 3)):
        assert right[place].argmax() == np.argmax(COLOURS[kind]) and right[place].max() > GREY
    assert (right[15, 15] == GREY).all(), "neuropil is left as it is"


def test_a_large_plane_is_thinned(tmp_path: Path) -> None:
    image = np.arange(2 * 40 * 60, dtype=np.uint64).reshape(2, 40, 60).astype(np.uint8)
    masks, name = volumes(tmp_path, image=image)
    picture = mask_over_image(masks, name, 0, size=20)
    assert picture.shape == (14, 20 + 8 + 20, 3)
    assert np.array_equal(picture[:, :20, 0], image[0, ::3, ::3])


@pytest.mark.parametrize(
    ("others", "plane", "message"),
    [
        ({}, 2, "has no plane 2; expected 0 to 1"),
        ({}, -1, "has no plane -1"),
        ({"image": np.zeros((2, 40, 50), np.uint8)}, 0, "expected that of"),
        ({"masks": np.full((2, 40, 60), 9, np.uint8)}, 0, "holds [9]; expected classes, 0 to 3"),
        ({"image": np.zeros((2, 40, 60), np.uint16)}, 0, "dtype uint16; expected uint8"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, others: dict[str, Any], plane: int, message: str) -> None:
    masks, image = volumes(tmp_path, **others)
    with pytest.raises(DataError) as raised:
        mask_over_image(masks, image, plane)
    assert message in str(raised.value)


def test_a_missing_volume_leaves_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, _ = volumes(tmp_path)
    assert main([masks, str(tmp_path / "none.zarr"), "0", str(tmp_path / "picture.png")]) == 2
    assert "none.zarr" in capsys.readouterr().err and not (tmp_path / "picture.png").exists()
