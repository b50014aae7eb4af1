"""Reading pipelines: references, paths, and what is said of one that cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import DataError, ParameterError
from ensemble.pipeline.definition import Pipeline, load_pipeline
from ensemble.pipeline.references import named_steps, resolve, with_paths

MONTAGE = {"stage": "montage", "parameters": {"tiles": "./tiles.csv"}}
ALIGNMENT = {"stage": "alignment", "parameters": {"montage": "${montage.output}"}}


def test_yaml_becomes_steps_with_paths_from_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "block-7.yml"
    file.write_text(
        "steps:\n"
        "  montage: {stage: montage, parameters: {tiles: ./scope/tiles.csv}, grain: 3, gate: {tiles_connected: 1}}\n"
        "  alignment: {stage: alignment, parameters: {montage: '${montage.output}'}, on_held: wait, gate: none}\n"
    )
    pipeline, folder = load_pipeline(file)
    assert (pipeline.name, folder) == ("block-7", tmp_path)
    montage, alignment = pipeline.steps.values()
    assert montage.parameters == {"tiles": str(tmp_path / "scope" / "tiles.csv")} and montage.grain == 3
    assert montage.thresholds() == {"tiles_connected": 1.0} and alignment.thresholds() == {}
    assert pipeline.needs("alignment") == ("montage",)


def test_vars_hold_what_several_steps_share_and_one_may_change(tmp_path: Path) -> None:
    file = tmp_path / "flow.yml"
    file.write_text(
        "vars: {tiles: &tiles ./scope/tiles.csv, shared: &shared {search: 3, workers: 2}}\n"
        "steps:\n"
        "  one: {stage: montage, parameters: {<<: *shared, tiles: *tiles}}\n"
        "  two: {stage: montage, parameters: {workers: 4, <<: *shared, tiles: *tiles}}\n"
    )
    one, two = (step.parameters for step in load_pipeline(file)[0].steps.values())
    assert one == {"search": 3, "workers": 2, "tiles": str(tmp_path / "scope" / "tiles.csv")}
    assert two == one | {"workers": 4}


def test_a_python_file_defines_the_same(tmp_path: Path) -> None:
    file = tmp_path / "flow.py"
    file.write_text(
        "from ensemble.pipeline.definition import Pipeline, Step\n"
        "steps = {'montage': Step(stage='montage', parameters={'tiles': './tiles.csv'})}\n"
        "pipeline = Pipeline(name='mine', steps=steps)\n"
    )
    pipeline, _ = load_pipeline(file)
    assert pipeline.name == "mine" and pipeline.steps["montage"].parameters["tiles"] == str(tmp_path / "tiles.csv")


def test_without_a_gate_of_its_own_a_step_has_the_one_that_its_stage_suggests() -> None:
    pipeline = Pipeline.from_json({"name": "a", "steps": {"montage": MONTAGE, "alignment": ALIGNMENT}})
    assert "overlap_correlation" in pipeline.steps["montage"].thresholds()
    simulation = {"stage": "simulation", "parameters": {"seconds": 1}}
    assert Pipeline.from_json({"name": "a", "steps": {"s": simulation}}).steps["s"].thresholds() == {}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"montage": {**MONTAGE, "parameters": {"tiles": "./x", "search": -1}}}, r"step montage: .*>= 1"),
        (
            {"montage": MONTAGE, "a": {**ALIGNMENT, "parameters": {"montage": "${montage.output}", "workers": 0}}},
            r"step a: wo",
        ),
        ({"montage": {**MONTAGE, "gate": {"sharpness": 1}}}, r"'sharpness': no such measure; expected one of overlap"),
        ({"montage": {**MONTAGE, "gate": {"tiles_connected": "high"}}}, r"gate"),
        ({"montage": {**MONTAGE, "grane": 2}}, r"grane"),
        (
            {"alignment": ALIGNMENT, "montage": MONTAGE},
            r"step alignment: names the step 'montage'; .*before it are: none",
        ),
        ({"montage": {**MONTAGE, "after": ["phantom"]}}, r"names the step 'phantom', which there is not"),
        ({"montage": MONTAGE, "a": {**ALIGNMENT, "after": ["montag"]}}, r"'montag' \(did you mean 'montage'\?\)"),
        (
            {"montage": {**MONTAGE, "stage": "montaje"}},
            r"step montage: 'montaje': no such stage \(did you mean 'montage'\?\)",
        ),
        (
            {"montage": {**MONTAGE, "parameters": {"tile": "x"}}},
            r"unknown parameter tile \(did you mean 'tiles'\?\); expected some of tiles",
        ),
        ({"montage": {**MONTAGE, "after": ["montage"]}}, r"step montage: names itself"),
        (
            {"montage": {**MONTAGE, "after": ["b"]}, "a": ALIGNMENT, "b": {**ALIGNMENT, "after": ["a"]}},
            r"step montage: names the step 'b'; steps go in a circle: montage waits for b waits for montage",
        ),
        (
            {
                "m": {**MONTAGE, "parameters": {"tiles": "./t", "output": "./x"}},
                "n": {**MONTAGE, "parameters": {"tiles": "./t", "output": "./y/../x/"}},
            },
            r"step n: has the output x of step m",
        ),
        ({"montage": MONTAGE, "a": {**ALIGNMENT, "parameters": {"montage": "${montage}"}}}, r"step a: .*of the form"),
        ({"s": {"stage": "synapses", "parameters": {"model": "mine"}}}, r"step s: model 'mine': begin it with \./"),
        ({"s": {"stage": "inference", "parameters": {"model": "a/b"}}}, r"step s: model 'a/b': begin it with \./"),
        (
            {"s": {"stage": "training", "parameters": {"volumes": [{"image": "em.zarr"}]}}},
            r"step s: volumes.0.image 'em.zarr': begin it with \./",
        ),
        ({"a/b": MONTAGE}, r"step 'a/b'"),
        ({}, r"steps"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(steps: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Pipeline.from_json({"name": "a", "steps": steps})


def test_a_wide_pipeline_in_a_wrong_order_is_refused_at_once() -> None:
    """Twenty layers of three steps, each waiting for all of the layer before, have 3^20 ways through them."""
    later = {
        f"s{layer}-{place}": {**MONTAGE, "after": [f"s{layer - 1}-{p}" for p in range(3)] if layer else []}
        for layer in range(20)
        for place in range(3)
    }
    steps = {"first": {**MONTAGE, "after": ["s19-0"]}, **later}
    with pytest.raises(ParameterError, match=r"step first: .*'s19-0'; that comes after it"):
        Pipeline.from_json({"name": "a", "steps": steps})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "cannot be read as YAML"),
        ("steps:\n  a: {stage: montage}\n  a: {stage: phantom}\n", "'a' is given twice"),
        ("- a\n", "expected `name` and `steps`"),
        ("name: b\nstep: {}\n", "step"),
        ("var: {}\nsteps: {}\n", "unknown field var; a pipeline has `name`, `vars` and `steps`"),
        ("vars: &a {b: 1}\nsteps: {<<: *a, <<: *a}\n", "'<<' is given twice"),
        ("steps:\n  a:\n", "step a: expected `stage` and `parameters`, not None"),
        ("steps:\n  a: {stage: montage, part: 2}\n", r"unknown field `part` \(did you mean 'parts'\?\)"),
    ],
)
def test_files_that_are_no_pipeline(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "flow.yml"
    file.write_text(text)
    with pytest.raises((DataError, ParameterError), match=message):
        load_pipeline(file)


def test_python_files_that_are_no_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "flow.py"
    for text, message in (("1/0", "ZeroDivisionError"), ("pipeline = 3", "defines no pipeline")):
        file.write_text(text)
        with pytest.raises((DataError, ParameterError), match=message):
            load_pipeline(file)
    with pytest.raises(DataError, match="no such pipeline file"):
        load_pipeline(tmp_path / "none.yml")


def test_references_are_put_in_wherever_they_stand() -> None:
    value = {"a": "${x.n}", "b": ["${y.path}/sections", {"c": 1}], "d": "plain"}
    assert named_steps(value) == ("x", "y")
    given: dict[str, dict[str, Any]] = {"x": {"n": 3}, "y": {"path": "/there"}}
    assert resolve(value, given) == {"a": 3, "b": ["/there/sections", {"c": 1}], "d": "plain"}
    with pytest.raises(ParameterError, match=r"step x gives no 'm'; it gives n"):
        resolve("${x.m}", given)


def test_paths_count_from_the_folder_of_the_pipeline() -> None:
    value = {"a": "./em.h5:raw", "b": ["../x/./y", "z"], "c": 2}
    assert with_paths(value, Path("/data/run")) == {"a": "/data/run/em.h5:raw", "b": ["/data/x/y", "z"], "c": 2}


def test_a_library_that_is_missing_is_said_before_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ParameterError, match=r"step lines: kimimaro.*make environment EXTRAS=cpu,skeletons"):
        Pipeline.from_json(
            {"name": "a", "steps": {"lines": {"stage": "skeletons", "parameters": {"segmentation": "/s.zarr"}}}}
        )
