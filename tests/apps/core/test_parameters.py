"""Parameters: types, ranges, unknown fields, nesting, JSON and hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result, json_hash, write_json


class Inner(Parameters, frozen=True, kw_only=True):
    depth: Annotated[int, Meta(ge=1, le=32, description="layers")] = 4


class Outer(Parameters, frozen=True, kw_only=True):
    rate: Annotated[float, Meta(gt=0, description="learning rate")]
    steps: Annotated[int, Meta(ge=1, description="steps")] = 10
    optimizer: Annotated[Literal["sgd", "adam"], Meta(description="optimiser")] = "adam"
    fov: Annotated[tuple[int, int, int], Meta(description="field of view, zyx")] = (17, 17, 17)
    inner: Annotated[Inner | None, Meta(description="nested")] = None
    name: Annotated[str | None, Meta(description="optional text")] = None
    weights: Annotated[tuple[float, ...], Meta(description="any number of floats")] = ()
    table: Annotated[dict[str, float], Meta(description="floats by name")] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        if self.steps > 100 and self.optimizer == "sgd":
            raise ParameterError("sgd with more than 100 steps")


GOOD: dict[str, Any] = {"rate": 0.5, "steps": 3, "optimizer": "sgd", "fov": [9, 9, 9], "inner": {"depth": 2}}


def test_json_round_trip(tmp_path: Path) -> None:
    parameters = Outer.from_json(GOOD)
    assert parameters == Outer(rate=0.5, steps=3, optimizer="sgd", fov=(9, 9, 9), inner=Inner(depth=2))
    file = tmp_path / "parameters.json"
    parameters.save(file)
    assert Outer.load(file) == parameters
    assert Outer.from_json(parameters.to_dict()) == parameters
    assert Outer.from_json(file.read_text()) == parameters


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": -0.1}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"rate": None}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": "3"}, "steps"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"fov": (9, 9)}, "fov"),
        ({"fov": (9, 9, 9.5)}, "fov"),
        ({"name": 7}, "name"),
        ({"weights": (1.0, float("nan"))}, "weights"),
        ({"table": {"a": float("-inf")}}, "table"),
    ],
)
def test_construction_names_the_bad_field(change: dict[str, Any], named: str) -> None:
    fields = {"rate": 0.5, **change}
    with pytest.raises(ParameterError, match=rf"Outer\.{named} = "):
        Outer(**fields)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rate": 0}, "rate"),
        ({"steps": 2.5}, "steps"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"fov": [9, 9]}, "fov"),
        ({"inner": {"depth": 0}}, r"inner\.depth"),
        ({"inner": {"deep": 1}}, "deep"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_json_names_the_bad_field_and_the_known_ones(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ParameterError, match=named) as caught:
        Outer.from_json({**GOOD, **change}, where="given.json")
    assert str(caught.value).startswith("given.json: ")
    assert "optimizer" in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ParameterError, match="rate"):
        Outer.from_json("{}")


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b'{"rate": NaN}', b"\xff\xfe"])
def test_broken_json_is_the_users_error(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "parameters.json"
    file.write_bytes(text)
    with pytest.raises(ParameterError, match=r"parameters\.json"):
        Outer.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json"):
        Outer.load(tmp_path / "absent.json")
    with pytest.raises(DataError, match="expected a JSON file"):
        Outer.load(tmp_path)


def test_check_runs_on_construction_and_on_json() -> None:
    with pytest.raises(ParameterError, match="100 steps"):
        Outer(rate=1.0, steps=101, optimizer="sgd")
    with pytest.raises(ParameterError, match="100 steps"):
        Outer.from_json({"rate": 1.0, "steps": 101, "optimizer": "sgd"})


def test_frozen() -> None:
    parameters = Outer(rate=0.5)
    with pytest.raises(AttributeError):
        parameters.rate = 1.0  # type: ignore[misc]
    assert parameters.rate == 0.5


def test_an_integer_stands_for_a_float_and_hashes_as_one() -> None:
    """JSON has one number type: a file that says 1 and one that says 1.0 hold the same configuration."""
    assert Outer.from_json('{"rate": 1}').hash() == Outer.from_json('{"rate": 1.0}').hash()
    assert Outer(rate=1).hash() == Outer(rate=1.0).hash()
    assert type(Outer(rate=1).rate) is float


def test_hash_depends_on_content_alone() -> None:
    one = Outer.from_json('{"rate": 0.5, "steps": 3}')
    other = Outer.from_json('{"steps": 3, "rate": 0.5}')
    assert one.hash() == other.hash() == Outer(rate=0.5, steps=3).hash()
    assert one.hash() != Outer(rate=0.5, steps=4).hash()
    assert one.hash() != Outer(rate=0.5, steps=3, inner=Inner()).hash()


def test_hash_is_stable() -> None:
    """Stored records carry hashes: the algorithm must not change."""
    assert json_hash({"b": [1, 2.5, None], "a": "x"}) == "ce74053d7a9997b7"
    assert json_hash({"a": "x", "b": [1, 2.5, None]}) == "ce74053d7a9997b7"


def test_schema_has_ranges_and_descriptions() -> None:
    properties = Outer.schema()["$defs"]["Outer"]["properties"]
    assert properties["steps"]["minimum"] == 1
    assert properties["rate"]["description"] == "learning rate"
    assert Outer.schema()["$defs"]["Outer"]["additionalProperties"] is False


def test_inheritance_keeps_the_rules() -> None:
    class Special(Outer, frozen=True, kw_only=True):
        size: Annotated[int, Meta(ge=0, description="size")] = 1

    assert Special(rate=0.5).to_dict()["size"] == 1
    with pytest.raises(ParameterError, match="rate"):
        Special(rate=-1.0)
    with pytest.raises(ParameterError, match="size"):
        Special(rate=1.0, size=-1)


def test_results_follow_the_same_rules() -> None:
    class Counted(Result, frozen=True, kw_only=True):
        objects: Annotated[int, Meta(ge=0, description="objects")]

    assert Counted.from_json({"objects": 3}).objects == 3
    with pytest.raises(ParameterError, match="objects"):
        Counted(objects=-3)


def test_nan_never_reaches_a_file(tmp_path: Path) -> None:
    """NaN is no JSON: other readers of the file would fail."""
    file = tmp_path / "x.json"
    write_json(file, {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"value": float("nan")})
    assert file.read_text() == '{\n  "value": 1\n}\n'
