"""Ingest: exact copies and statistics, and one clear error for everything that can be wrong with the input."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.ingest.stage import STAGE, IngestParameters, run
from apps.ingest.statistics import Histogram

SHAPE = (70, 20, 300)
VOXEL = (8.0, 8.0, 8.0)


def image_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def labels_of(dtype: Any = np.uint32) -> np.ndarray:
    labels = np.zeros(SHAPE, dtype)
    labels[2:20], labels[30:, 5:9], labels[30:, 12:] = 7, 9, 1000
    return labels


def h5(folder: Path, **datasets: np.ndarray) -> str:
    file = folder / "data.h5"
    with h5py.File(file, "w") as stream:
        for name, data in datasets.items():
            stream[name] = data
    return str(file)


def test_the_example_is_valid() -> None:
    assert IngestParameters.from_json(STAGE.example).labels == "sample.h5:labels"


def test_copies_exactly_with_exact_statistics(tmp_path: Path) -> None:
    image, labels = image_of(), labels_of(np.uint64)
    file = h5(tmp_path, raw=image, labels=labels)
    said: list[float] = []
    result = run(
        IngestParameters(
            image=f"{file}:raw", labels=f"{file}:labels", output=str(tmp_path / "out"), voxel_size_nm=VOXEL
        ),
        lambda done, total, what="": said.append(done / total),
    )
    assert result.labels is not None
    written, truth = open_volume(result.image), open_volume(result.labels)
    assert np.array_equal(written.read(), image) and np.array_equal(truth.read(), labels)
    assert truth.dtype == np.uint32 and written.voxel_size_nm == truth.voxel_size_nm == VOXEL
    assert result.shape == SHAPE and result.voxel_size_nm == VOXEL and result.objects == 3
    assert result.image_mean == pytest.approx(image.mean(), rel=1e-12)
    assert result.image_std == pytest.approx(image.std(), rel=1e-12)
    assert said == sorted(said) and said[-1] == 1.0


def test_a_box_is_cropped_and_changes_the_hash(tmp_path: Path) -> None:
    image = image_of()
    file = h5(tmp_path, raw=image)
    box = Box.of((3, 4, 5), (66, 10, 280))
    whole = run(IngestParameters(image=f"{file}:raw", output=str(tmp_path / "a"), voxel_size_nm=VOXEL), silent)
    part = run(IngestParameters(image=f"{file}:raw", output=str(tmp_path / "b"), voxel_size_nm=VOXEL, box=box), silent)
    again = run(IngestParameters(image=f"{file}:raw", output=str(tmp_path / "b"), voxel_size_nm=VOXEL, box=box), silent)
    assert np.array_equal(open_volume(part.image).read(), image[box.slices()])
    assert part == again and part.labels is None and part.objects == 0
    assert part.data_hash != whole.data_hash


def test_the_hash_covers_the_labels(tmp_path: Path) -> None:
    labels = labels_of()
    write_volume(tmp_path / "image.zarr", image_of(), VOXEL)
    hashes = set()
    for number, changed in enumerate((0, 5)):
        labels[0, 0, 0] = changed
        write_volume(tmp_path / "labels.zarr", labels, VOXEL)
        result = run(
            IngestParameters(
                image=str(tmp_path / "image.zarr"),
                labels=str(tmp_path / "labels.zarr"),
                output=str(tmp_path / f"out{number}"),
            ),
            silent,
        )
        hashes.add(result.data_hash)
        assert result.voxel_size_nm == VOXEL
    assert len(hashes) == 2


def test_large_ids_stay_whole(tmp_path: Path) -> None:
    labels = labels_of(np.uint64)
    labels[labels == 7] = 2**40 + 1
    file = h5(tmp_path, raw=image_of(), labels=labels)
    result = run(
        IngestParameters(image=f"{file}:raw", labels=f"{file}:labels", output=str(tmp_path / "o"), voxel_size_nm=VOXEL),
        silent,
    )
    assert result.labels is not None
    truth = open_volume(result.labels)
    assert truth.dtype == np.uint64 and np.array_equal(truth.read(), labels)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"raw": image_of().astype(np.uint16)}, "uint16; expected an image of uint8"),
        ({"raw": np.full(SHAPE, np.nan, np.float32)}, "float32; expected an image of uint8"),
        ({"raw": image_of()[0]}, "2 dimensions"),
        ({"raw": np.full(SHAPE, 9, np.uint8)}, "every voxel"),
        ({"labels": labels_of().astype(np.float32)}, "expected labels of an integer type"),
        ({"labels": labels_of()[:-1]}, "has shape"),
        ({"labels": np.zeros(SHAPE, np.uint32)}, "all labels"),
        ({"labels": -labels_of(np.int32)}, "negative labels"),
    ],
)
def test_bad_data_is_named_and_leaves_nothing(tmp_path: Path, change: dict[str, np.ndarray], word: str) -> None:
    file = h5(tmp_path, **{"raw": image_of(), "labels": labels_of(), **change})
    with pytest.raises(DataError, match=word):
        run(
            IngestParameters(
                image=f"{file}:raw", labels=f"{file}:labels", output=str(tmp_path / "out"), voxel_size_nm=VOXEL
            ),
            silent,
        )
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"image": "missing.h5:raw"}, DataError, "no such file"),
        ({"image": "{file}:rwa"}, DataError, "has no dataset 'rwa'; it has labels, raw"),
        ({"labels": "{file}:nothing"}, DataError, "nothing"),
        ({"voxel_size_nm": None}, ParameterError, "voxel_size_nm"),
        ({"box": {"offset": (0, 0, 0), "shape": (71, 20, 300)}}, DataError, "leaves the volume"),
        ({"box": {"offset": (0, 0, 0), "shape": (0, 20, 300)}}, ParameterError, "empty"),
        ({"voxel_size_nm": (8.0, -8.0, 8.0)}, ParameterError, "positive"),
    ],
)
def test_bad_parameters_are_named(tmp_path: Path, change: dict[str, Any], error: type[Exception], word: str) -> None:
    file = h5(tmp_path, raw=image_of(), labels=labels_of())
    given = {"image": "{file}:raw", "output": str(tmp_path / "out"), "voxel_size_nm": VOXEL, **change}
    given = {key: value.replace("{file}", file) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(error, match=word):
        run(IngestParameters.from_json(given), silent)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = h5(tmp_path, raw=image_of())
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="taken"):
        run(IngestParameters(image=f"{file}:raw", output=str(tmp_path / "taken"), voxel_size_nm=VOXEL), silent)


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    write_volume(tmp_path / "image.zarr", image_of(), VOXEL)
    with pytest.raises(ParameterError, match="overwritten"):
        run(IngestParameters(image=str(tmp_path / "image.zarr"), output=str(tmp_path)), silent)


def test_voxel_sizes_that_disagree_are_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "i.zarr", image_of(), VOXEL)
    write_volume(tmp_path / "l.zarr", labels_of(), (8.0, 8.0, 16.0))
    given = {"image": str(tmp_path / "i.zarr"), "labels": str(tmp_path / "l.zarr"), "output": str(tmp_path / "o")}
    with pytest.raises(DataError, match="voxels of"):
        run(IngestParameters.from_json(given), silent)
    assert run(IngestParameters.from_json({**given, "voxel_size_nm": VOXEL}), silent).voxel_size_nm == VOXEL


def test_the_histogram_does_not_overflow() -> None:
    histogram = Histogram()
    histogram._counts[[0, 255]] = 2**61  # as many voxels as no array holds
    assert histogram.mean == 127.5 and histogram.std == 127.5


def test_fib25(tmp_path: Path) -> None:
    folder = Path(os.environ.get("ENSEMBLE_FIB25", Path(__file__).parents[2] / "../shared/data/fib25"))
    file = folder / "training_sample2_z000-170.h5"
    if not file.is_file():
        pytest.skip(f"{file} is missing; the FIB-25 sample is not part of the repository")
    box = Box.of((40, 60, 60), (64, 128, 128))
    result = run(
        IngestParameters(
            image=f"{file}:raw",
            labels=f"{file}:labels",
            output=str(tmp_path / "fib"),
            voxel_size_nm=(10.0, 10.0, 10.0),
            box=box,
        ),
        silent,
    )
    with h5py.File(file) as stream:
        assert np.array_equal(open_volume(result.image).read(), stream["raw"][box.slices()])
    assert 120 < result.image_mean < 140 and 25 < result.image_std < 40 and result.objects > 20
