"""What every stage in STAGES has to be: documented, validated, runnable alone, and light to import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.core.parameters import Parameters, Result
from apps.core.stage import STAGES, load_stage, stage_main

ROOT = Path(__file__).resolve().parents[2]
every_stage = pytest.mark.parametrize("name", list(STAGES))


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("Struct.field", its schema) of a schema and of all that it nests."""
    for struct, definition in schema["$defs"].items():
        for field, entry in definition.get("properties", {}).items():
            yield f"{struct}.{field}", entry


@every_stage
def test_contract(name: str) -> None:
    stage = load_stage(name)
    assert stage.name == name
    assert issubclass(stage.parameters, Parameters)
    assert issubclass(stage.result, Result)
    assert len(stage.summary.split()) >= 3
    assert "\n" not in stage.summary


@every_stage
def test_example_is_valid_and_survives_json(name: str) -> None:
    stage = load_stage(name)
    parameters = stage.parameters.from_json(json.dumps(stage.example))
    assert stage.parameters.from_json(json.dumps(parameters.to_dict())) == parameters
    assert len(parameters.hash()) == 16


@every_stage
def test_every_field_of_the_parameters_is_described(name: str) -> None:
    schema = load_stage(name).parameters.schema()
    undescribed = [field for field, entry in fields(schema) if not entry.get("description", "").strip()]
    assert undescribed == []


@every_stage
def test_unknown_fields_are_refused(name: str) -> None:
    schema = load_stage(name).parameters.schema()
    open_ended = [struct for struct, entry in schema["$defs"].items() if entry.get("additionalProperties") is not False]
    assert open_ended == []


@every_stage
def test_schema_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stage = load_stage(name)
    assert stage_main(stage, ["--print-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["$defs"][stage.parameters.__name__]["required"]) <= set(stage.example)


@every_stage
def test_bad_parameters_are_the_users_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field that no stage has: refused before anything runs, with nothing but failure.json written."""
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps({**load_stage(name).example, "colour_of_the_sky": "blue"}))
    assert stage_main(load_stage(name), [str(file)]) == 2
    assert "colour_of_the_sky" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failure.json", "parameters.json"]


@every_stage
def test_runs_as_a_module_without_heavy_imports(name: str) -> None:
    """`--help` names every field, and neither it nor the stage's import brings in TensorFlow or the control plane."""
    code = f"""
import runpy, sys
sys.argv = ["apps.{name}", "--help"]
try:
    runpy.run_module("apps.{name}", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = sorted({{"tensorflow", "keras", "balsam", "deephyper", "ray", "matplotlib", "pandas"}} & set(sys.modules))
print("heavy:", *heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    *shown, heavy = done.stdout.splitlines()
    assert heavy == "heavy:"
    text = "\n".join(shown)
    assert f"python -m apps.{name}" in text
    for field in load_stage(name).parameters.__struct_fields__:
        assert field in text
