"""Typed parameter and result objects: frozen, validated on construction, JSON in and out.

They are msgspec Structs (a frozen dataclass in all but name), so that types, ranges (`Annotated[int, Meta(ge=1)]`) and
descriptions stand in one place and the JSON schema is derived from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import typing
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, Self

import msgspec

from apps.core.errors import DataError, ParameterError
from apps.core.files import write_atomically
from apps.core.suggestions import did_you_mean

UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`$")  # what msgspec says of one of the outermost object


@cache
def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls.__struct_fields__}  # type: ignore[attr-defined]


def _finite(value: Any) -> bool:
    """True where `value` holds no NaN and no infinity, which JSON cannot say."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_finite, value))


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every stage's parameters.

    Subclasses annotate fields, and may define `check()` for conditions that concern several fields.
    Construction raises `ParameterError` that names the field, the value and what was expected.
    """

    def __post_init__(self) -> None:
        for name, annotation in _field_types(type(self)).items():
            value = getattr(self, name)
            try:
                converted = msgspec.convert(value, annotation, strict=True)
            except msgspec.ValidationError as error:
                raise ParameterError(f"{type(self).__name__}.{name} = {value!r}: {error}") from None
            if not _finite(converted):
                raise ParameterError(f"{type(self).__name__}.{name} = {value!r}: expected finite numbers")
            # An int given for a float, or a list for a tuple, is kept as what a JSON file would have given: one
            # configuration has one hash, however it was built.
            if converted is not value:
                msgspec.structs.force_setattr(self, name, converted)
        self.check()

    def check(self) -> None:
        """Raise `ParameterError` where fields do not fit each other; the default accepts everything."""

    @classmethod
    def from_json(cls, data: bytes | str | dict[str, Any], where: str = "parameters") -> Self:
        """Build from JSON text or from decoded JSON; `where` names the source in errors."""
        try:
            if isinstance(data, dict):
                return msgspec.convert(data, cls, strict=True)
            return msgspec.json.decode(data, type=cls, strict=True)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            known = ", ".join(cls.__struct_fields__)
            unknown = UNKNOWN_FIELD.search(str(error))
            meant = did_you_mean(unknown[1], cls.__struct_fields__) if unknown else ""
            raise ParameterError(f"{where}: {error}{meant}; {cls.__name__} has the fields {known}") from None

    @classmethod
    def check_names(cls, names: Collection[str]) -> None:
        """Raise ParameterError where one of the names is no field, or a field without a default is missing."""
        unknown = [name for name in names if name not in cls.__struct_fields__]
        if unknown:
            known = ", ".join(cls.__struct_fields__)
            named = ", ".join(f"{name}{did_you_mean(name, cls.__struct_fields__)}" for name in unknown)
            raise ParameterError(f"unknown parameter {named}; expected some of {known}")
        missing = [field.name for field in msgspec.structs.fields(cls) if field.required and field.name not in names]
        if missing:
            raise ParameterError(f"parameter {', '.join(missing)} is missing; {cls.__name__} has no default for it")

    @classmethod
    def check_fields(cls, data: dict[str, Any]) -> None:
        """Check some fields of decoded JSON, where others are not known yet.

        Raises ParameterError that names one whose value is of the wrong type or out of range.
        """
        types = _field_types(cls)
        for name, value in data.items():
            try:
                msgspec.convert(value, types[name], strict=True)
            except msgspec.ValidationError as error:
                raise ParameterError(f"{name} = {value!r}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a JSON file.  Raises `DataError` where there is none, `ParameterError` where its content is wrong."""
        file = Path(path)
        if not file.is_file():
            raise DataError(f"{file}: no such file; expected a JSON file with the fields of {cls.__name__}")
        return cls.from_json(file.read_bytes(), where=str(file))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return typing.cast(dict[str, Any], msgspec.to_builtins(self))

    def save(self, path: str | Path) -> None:
        """Write as a JSON file, atomically."""
        write_json(path, self.to_dict())

    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: equal parameters, equal hash."""
        return json_hash(self.to_dict())

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """JSON schema (2020-12) with the descriptions and ranges of the fields."""
        return msgspec.json.schema(cls)


class Result(Parameters, frozen=True, kw_only=True):
    """Base of every stage's result; same rules as parameters."""


def json_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically (a reader sees the old file or the new one)."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
