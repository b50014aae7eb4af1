"""The audit of a phantom: errors that were put in by hand come out, and annotations are the truth."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.audit.stage import AuditParameters, AuditResult, run
from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.core.volumes import open_volume, open_volume_to_write, write_volume
from apps.masking.classes import NOT_ANNOTATED, OUTSIDE
from apps.masking.records import SectionRecord

SECTIONS = 8


def do(stage: str, **parameters: Any) -> None:
    found = load_stage(stage)
    found.run(found.parameters.from_json(parameters), silent)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a phantom that was acquired, its montage, and its alignment."""
    folder = tmp_path_factory.mktemp("audit")
    motion = {"translation": 3, "rotation_deg": 0.5, "deformation": 0.5, "margin": 6}
    do(
        "phantom",
        output=str(folder / "phantom"),
        shape=[SECTIONS, 144, 192],
        section_thickness=2,
        seed=5,
        design={"noise": 0, "vessels": 2},
        acquisition={"grid": [1, 2], "overlap": 0.25, "jitter": 3, **motion},
    )
    tiles = str(folder / "phantom" / "tiles.csv")
    do("montage", tiles=tiles, output=str(folder / "montage"), search=12, chunk=64, blend=4)
    alignment = {"matching": {"spacing": 16}, "rendering": {"chunks": [2, 64, 64], "group": [1, 8, 8]}}
    do("alignment", montage=str(folder / "montage"), output=str(folder / "alignment"), **alignment)
    return folder


def audit(folder: Path, output: Path, **more: Any) -> AuditResult:
    places = {name: str(folder / name) for name in ("phantom", "montage", "alignment")}
    return run(AuditParameters.from_json({**places, "output": str(output), **more}), silent)


def errors_of(result: AuditResult, stage: str) -> dict[int, float]:
    assert result.errors is not None
    with Path(result.errors).open() as stream:
        return {int(row["section"]): float(row["error"]) for row in csv.DictReader(stream) if row["stage"] == stage}


def test_good_work_has_small_errors_of_every_section(made: Path, tmp_path: Path) -> None:
    result = audit(made, tmp_path)
    montage, alignment = result.stages
    assert (montage.stage, montage.sections, alignment.stage, alignment.sections) == ("montage", 8, "alignment", 8)
    assert montage.rms is not None and montage.rms < 0.3
    assert alignment.rms is not None and alignment.rms < 2.5
    errors = errors_of(result, "montage")
    assert math.isclose(montage.rms, math.sqrt(sum(e * e for e in errors.values()) / 8)) and result.dice == {}


def test_a_tile_that_is_moved_is_an_error_of_half_the_way(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "montage", tmp_path / "montage")
    record = tmp_path / "montage" / "sections" / "00003.json"
    content = json.loads(record.read_text())
    true = {tile["path"]: tile for tile in json.loads((made / "phantom" / "truth.json").read_text())["tiles"]}
    for tile in content["tiles"]:
        tile |= {"y": true[tile["path"]]["y"], "x": true[tile["path"]]["x"]}
    content["tiles"][1]["x"] += 6.0
    record.write_text(json.dumps(content))
    result = audit(made, tmp_path / "audit", montage=str(tmp_path / "montage"), alignment=None)
    # Of two tiles each is three pixels from where the mean of both has them.
    assert errors_of(result, "montage")[3] == pytest.approx(3.0)


def test_a_section_that_is_put_elsewhere_has_the_error_of_the_alignment(made: Path, tmp_path: Path) -> None:
    from apps.alignment.storage import load_mesh, mesh_path, save_mesh
    from apps.alignment.transforms import Mesh, Rigid

    shutil.copytree(made / "alignment", tmp_path / "alignment")
    before = errors_of(audit(made, tmp_path / "before"), "alignment")
    stored = load_mesh(mesh_path(made / "alignment", 4))
    assert stored is not None
    y, x = stored.mesh.rigid.shift
    moved = Mesh(Rigid(stored.mesh.rigid.angle, (y, x + 8.0)), stored.mesh.grid)
    save_mesh(mesh_path(tmp_path / "alignment", 4), moved, stored.identity)
    after = errors_of(audit(made, tmp_path / "after", alignment=str(tmp_path / "alignment")), "alignment")
    assert 6.0 < after[4] < 9.0 and before[4] < 2.5
    assert all(after[section] < before[section] + 1.5 for section in after if section != 4)


def test_annotations_are_the_classes_of_the_sections_asked_for(made: Path, tmp_path: Path) -> None:
    result = audit(made, tmp_path, action="annotate", annotated=[1, 5])
    assert result.labels is not None
    labels, aligned = open_volume(result.labels), open_volume(str(made / "alignment" / "aligned.zarr"))
    assert labels.shape == aligned.shape and labels.voxel_size_nm == aligned.voxel_size_nm
    found, image = labels.read(), aligned.read()
    for plane in range(SECTIONS):
        if plane in (1, 5):
            assert (found[plane][image[plane] == 0] == OUTSIDE).all()
            assert {0, 1} <= set(np.unique(found[plane])) <= {0, 1, 2, OUTSIDE}
        else:
            assert (found[plane] == NOT_ANNOTATED).all()
    # A vessel's lumen is bright, in the image that was aligned too.
    assert image[5][found[5] == 1].mean() > image[5][found[5] == 0].mean() + 15


def write_record(file: Path, section: int) -> None:
    """What the masking stage writes last of a section."""
    scores = {"expected_dice": None, "entropy": None, "boundary_sharpness": None}
    record: dict[str, Any] = {
        "section": section,
        "plane": section,
        "identity": "x",
        "fractions": {},
        **scores,
        "faults": [],
    }
    SectionRecord.from_json(record).save(file)


def test_masks_are_compared_but_for_the_sections_they_were_learnt_from(made: Path, tmp_path: Path) -> None:
    every = audit(made, tmp_path / "truth", action="annotate", annotated=list(range(SECTIONS)))
    assert every.labels is not None
    truth = open_volume(every.labels)
    write_volume(tmp_path / "masks" / "masks.zarr", truth.read(), (1.0, 1.0, 1.0), (1, 64, 64))
    nothing = audit(made, tmp_path / "nothing", masking=str(tmp_path / "masks"))
    assert errors_of(nothing, "masking") == {}, "no section has been masked yet"
    (tmp_path / "masks" / "sections").mkdir()
    for number in range(SECTIONS):
        write_record(tmp_path / "masks" / "sections" / f"{number:05d}.json", number)
    perfect = audit(made, tmp_path / "perfect", masking=str(tmp_path / "masks"))
    assert set(errors_of(perfect, "masking").values()) == {0.0} and perfect.dice["vessel"] == 1.0

    plane = truth.read(Box.of((2, 0, 0), (1, *truth.shape[1:])))
    shown = open_volume(str(made / "alignment" / "aligned.zarr")).read()[2] > 0
    vessel = plane == 1
    open_volume_to_write(tmp_path / "masks" / "masks.zarr").write(
        Box.of((2, 0, 0), plane.shape), np.where(vessel, 0, plane).astype(np.uint8)
    )
    worse = audit(made, tmp_path / "worse", masking=str(tmp_path / "masks"))
    assert errors_of(worse, "masking")[2] == pytest.approx(vessel[0][shown].sum() / shown.sum())
    assert worse.dice["vessel"] is not None and worse.dice["vessel"] < 1.0
    without = audit(made, tmp_path / "without", masking=str(tmp_path / "masks"), annotated=[2])
    assert 2 not in errors_of(without, "masking") and without.dice["vessel"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"phantom": "{empty}"},
            r"truth\.json: no such file; expected the output folder of a phantom that was acquired",
        ),
        ({"montage": "{empty}"}, "holds no section of this phantom"),
        ({"masking": "{empty}"}, r"masks\.zarr: no such volume"),
        ({"action": "annotate", "annotated": [3, 99]}, r"sections \[99\]: the aligned volume does not show them"),
    ],
)
def test_what_does_not_belong_together_is_named(
    made: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = {k: v.format(empty=tmp_path / "empty") if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(DataError, match=message):
        audit(made, tmp_path / "out", **filled)
    assert not (tmp_path / "out" / "labels.zarr").exists() and not (tmp_path / "out" / "true_errors.csv").exists()


def test_a_tile_of_another_phantom_is_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "phantom", tmp_path / "phantom")
    truth = tmp_path / "phantom" / "truth.json"
    truth.write_text(truth.read_text().replace("tiles/00002/r0c1", "tiles/00002/r7c1"))
    with pytest.raises(DataError, match=r"tiles/00002/r0c1.*is not one of this phantom's"):
        audit(made, tmp_path / "out", phantom=str(tmp_path / "phantom"))
    truth.write_text("{")
    with pytest.raises(DataError, match="its truth cannot be read"):
        audit(made, tmp_path / "out", phantom=str(tmp_path / "phantom"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"masking": "m", "alignment": None}, "give its output folder"),
        ({"action": "annotate"}, "needs the numbers of sections"),
        ({"action": "annotate", "annotated": [1], "masking": "m"}, "leave it out"),
    ],
)
def test_parameters_that_do_not_fit_each_other(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        AuditParameters.from_json({"phantom": "p", "montage": "m", "alignment": "a", "output": "o", **parameters})
