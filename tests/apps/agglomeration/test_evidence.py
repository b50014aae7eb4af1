"""`ensemble explain`: from an agglomerated object to the links of its supervoxels, as a table of the real stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from apps.agglomeration import scoring
from apps.agglomeration.evidence import explain
from apps.agglomeration.stage import run
from apps.core.boxes import Box
from apps.core.errors import DataError, StateError
from apps.core.progress import silent
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.supervoxels import supervoxel_ids
from apps.core.volumes import write_volume
from apps.ffn.canvas import HostCanvas, Thresholds
from apps.reconciliation.settings import ReconciliationParameters
from apps.reconciliation.stage import run as reconcile
from ensemble.cli.main import ensemble
from tests.apps.agglomeration.samples import LEFT, MODEL, RIGHT, SIZE, labels, parameters, write_inputs

GRID = SubvolumeGrid(box=Box.of((0, 0, 0), (32, 32, 96)), shape=(32, 32, 48), overlap=(0, 0, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of samples.py in two subvolumes, x 0 to 48 and 48 to 96, reconciled and agglomerated."""
    where = tmp_path_factory.mktemp("evidence")
    write_inputs(where)
    whole = labels()
    for number, subvolume in enumerate(GRID):
        local = np.unique(whole[subvolume.read_box.slices()], return_inverse=True)[1].astype(np.uint32)
        write_volume(piece_path(where / "pieces", number), local, SIZE)
    reconcile(reconciling(where), silent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "inference_network", lambda *_: None)
        patch.setattr(scoring, "make_canvas", lambda _, settings, *__: canvas(settings))
        run(parameters(where, segmentation=str(where / "base.zarr"), output=str(where / "final.zarr")), silent)
    return where


def reconciling(where: Path, **fields: Any) -> ReconciliationParameters:
    values: dict[str, Any] = {"pieces": str(where / "pieces"), "output": str(where / "base.zarr")}
    return ReconciliationParameters(grid=GRID, chunks=(32, 32, 16), **{**values, "min_overlap_voxels": 50, **fields})


def canvas(settings: object) -> HostCanvas:
    predict = lambda image, seed: np.where(image > 0, np.float32(4), np.float32(-4))  # noqa: E731
    return HostCanvas(MODEL, predict, Thresholds.of(settings))  # type: ignore[arg-type]


def ids(folder: Path) -> dict[str, int]:
    """Supervoxels of the tube: its left part, and its right part in either subvolume."""
    first = [n for n in np.unique(labels()[:, :, :56]).tolist() if n]
    second = [n for n in np.unique(labels()[:, :, 40:]).tolist() if n]
    name = {"left": (0, first, LEFT), "right": (0, first, RIGHT), "right again": (1, second, RIGHT)}
    return {
        key: int(supervoxel_ids(number, np.array([known.index(own) + 1]))[0])
        for key, (number, known, own) in name.items()
    }


def test_an_object_is_traced_to_its_supervoxels(folder: Path) -> None:
    known = ids(folder)
    found = explain(folder / "final.zarr", known["left"])
    assert (found.object, found.asked) == (known["left"], known["left"])
    assert found.voxels == int(np.isin(labels(), (LEFT, RIGHT)).sum())
    assert [base.id for base in found.base] == [known["left"], known["right"]]
    joined = [row for row in found.decision_points if not row["refused"]]
    assert {(row["a"], row["b"]) for row in joined} == {(known["left"], known["right"])}
    assert joined[0]["iou"] > 0.8
    left, right = found.base
    assert [(item.id, item.subvolume) for item in left.supervoxels] == [(known["left"], 0)]
    assert left.links == []
    assert [item.id for item in right.supervoxels] == [known["right"], known["right again"]]
    (link,) = right.links
    assert (link["a"], link["b"], link["linked"]) == (known["right"], known["right again"], True)
    assert link["shared"] == 16 * 25


def test_a_part_is_found_in_the_object_it_became_part_of(folder: Path) -> None:
    known = ids(folder)
    for name in ("right", "right again"):
        found = explain(folder / "final.zarr", known[name])
        assert (found.object, found.asked) == (known["left"], known[name])


def test_a_segmentation_that_was_only_reconciled(folder: Path) -> None:
    known = ids(folder)
    found = explain(folder / "base.zarr", known["right again"])
    assert (found.object, found.agglomeration, found.decision_points) == (known["right"], None, [])
    assert [base.id for base in found.base] == [known["right"]]


def test_what_was_deployed_is_explained_as_well(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base.zarr").symlink_to(folder / "base.zarr")
    (tmp_path / "base-deployment").mkdir()
    (tmp_path / "base-deployment" / "reconciliation").symlink_to(folder / "base-reconciliation")
    known = ids(folder)
    assert explain(tmp_path / "base.zarr", known["right again"]).object == known["right"]


def test_the_command_shows_a_tree_or_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = ids(folder)
    line = ["explain", str(known["right"]), "--segmentation", str(folder / "final.zarr")]
    ensemble.main(args=line, standalone_mode=False)
    text = " ".join(capsys.readouterr().out.split())
    assert f"object {known['left']} (of which {known['right']} is a part)" in text
    assert "1 decision point joined 2 base objects" in text
    assert f"supervoxel {known['right again']}" in text
    assert "400 shared voxels, 100 %" in text
    ensemble.main(args=[*line, "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(json.dumps(explain(folder / "final.zarr", known["right"]).to_dict()))


def test_what_has_no_evidence_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="object 12345: "):
        explain(folder / "final.zarr", 12345)
    with pytest.raises(DataError, match="object 12345: "):
        explain(folder / "base.zarr", 12345)
    for segmentation in ("final.zarr", "base.zarr"):
        with pytest.raises(DataError, match=f"object {2**64}: is no id; expected one of .*, 1 to "):
            explain(folder / segmentation, 2**64)
    with pytest.raises(StateError, match="has no evidence"):
        explain(folder / "labels.zarr", 1)
    with pytest.raises(StateError, match="is no folder of an agglomeration"):
        explain(folder / "final.zarr", 1, agglomeration=tmp_path)


def test_a_decision_that_is_not_written_is_told_and_not_taken_for_the_volume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, out = ids(folder), tmp_path / "final.zarr"
    given = parameters(folder, segmentation=str(folder / "base.zarr"), output=str(out))
    monkeypatch.setattr(scoring, "inference_network", lambda *_: None)
    monkeypatch.setattr(scoring, "make_canvas", lambda _, settings, *__: canvas(settings))
    for action in ("score", "merge"):
        run(replace(given, action=action), silent)
    with pytest.raises(StateError, match=r"final\.zarr: is not of the decision .*, by which nothing is written yet"):
        explain(out, known["left"])
    run(given, silent)
    assert explain(out, known["right"]).object == known["left"]
    (tmp_path / "final-agglomeration" / "finished.json").unlink()  # killed when the volume had just got its name
    assert explain(out, known["right"]).object == known["left"]
    run(given, silent)

    (tmp_path / "cut.csv").write_text(f"a,b\n{known['left']},{known['right']}\n")
    apart = replace(given, cut=str(tmp_path / "cut.csv"))
    run(replace(apart, action="merge"), silent)
    line = ["explain", str(known["right"]), "--segmentation", str(out)]
    with pytest.raises(StateError, match=r"final\.zarr: was written before the decision .* to its end"):
        ensemble.main(args=line, standalone_mode=False)
    run(apart, silent)
    assert explain(out, known["right"]).object == known["right"]

    (tmp_path / "final-agglomeration" / "merge.json").unlink()
    with pytest.raises(StateError, match=r"a merge that was begun in .*final-agglomeration has not ended"):
        explain(out, known["right"])


def test_a_solution_that_is_not_written_is_told_and_not_taken_for_the_volume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, out = ids(folder), tmp_path / "base.zarr"
    for name in ("base.zarr", "base-reconciliation"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "cut.csv").write_text(f"a,b\n{known['right']},{known['right again']}\n")
    given = reconciling(folder, output=str(out))
    apart = replace(given, cut=str(tmp_path / "cut.csv"))
    work = Path(given.work_folder)

    def asked() -> list[list[int]]:
        found = explain(out, known["right"])
        return [[item.id for item in base.supervoxels] for base in found.base]

    whole = [[known["right"], known["right again"]]]
    assert asked() == whole
    reconcile(replace(apart, action="solve"), silent)
    stale = r"base\.zarr: was written before the solution that is in .*base-reconciliation now, .*; run the reconc"
    with pytest.raises(StateError, match=stale):
        ensemble.main(["explain", str(known["right"]), "--segmentation", str(out)], standalone_mode=False)
    with pytest.raises(StateError, match=stale):
        explain(folder / "final.zarr", known["right"], reconciliation=work)
    told = reconcile(replace(apart, action="verify"), silent)
    assert (told.complete, told.objects, told.links) == (True, None, None), "not those of what is solved now"
    reconcile(replace(given, action="solve"), silent)
    with pytest.raises(StateError, match="where a volume that was begun has not its name yet"):
        asked()
    reconcile(apart, silent)
    assert asked() == [[known["right"]]]
    assert reconcile(replace(apart, action="verify"), silent).objects is not None
    with pytest.raises(StateError, match=r"base\.zarr: was reconciled anew after it was agglomerated"):
        explain(folder / "final.zarr", known["right"], reconciliation=work)

    with monkeypatch.context() as patch:
        patch.setattr("apps.reconciliation.manifest.move_folder", _killed)
        with pytest.raises(KeyboardInterrupt):
            reconcile(given, silent)
    with pytest.raises(StateError, match="where a volume that was begun has not its name yet"):
        asked()
    reconcile(given, silent)
    assert asked() == whole

    manifest = (work / "manifest.parquet").read_bytes()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    other = replace(given, min_overlap_voxels=51)  # another solution, and the same objects
    reconcile(replace(other, action="solve"), silent)
    with pytest.raises(StateError, match=stale):
        asked()
    reconcile(replace(other, action="finish"), silent)
    assert asked() == whole
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written
    reconcile(given, silent)
    assert (work / "manifest.parquet").read_bytes() == manifest
    (work / "manifest.parquet").unlink()
    with pytest.raises(StateError, match=r"base\.zarr: is not of the solution .*, by which nothing is written yet"):
        asked()


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["nothing.zarr", "."])
def test_what_is_no_segmentation_is_said(folder: Path, name: str) -> None:
    line = ["explain", "1", "--segmentation", str(folder / name)]
    with pytest.raises(DataError, match=r"is no segmentation; expected the folder NAME\.zarr"):
        ensemble.main(args=line, standalone_mode=False)
