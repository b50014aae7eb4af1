"""`${step.value}` in the parameters of a step, and paths from the pipeline's folder: pure functions on plain JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from apps.core.errors import ParameterError

REFERENCE = re.compile(r"\$\{([^${}.\s]+)\.([^${}\s]+)\}")


def named_steps(value: Any) -> tuple[str, ...]:
    """The steps that references in `value` name, in their order, each once.

    Raises ParameterError for a text that begins like a reference and is none.
    """
    return tuple(dict.fromkeys(step for text in _texts(value) for step, _ in _references(text)))


def resolve(value: Any, values: Mapping[str, Mapping[str, Any]]) -> Any:
    """`value` with what the steps give (step -> name -> value) in the places of the references.

    A text that is one reference becomes the value itself, of whatever type; inside a longer text it becomes text.
    Raises ParameterError where a step gives nothing of that name.
    """

    def put_in(text: str) -> Any:
        whole = REFERENCE.fullmatch(text)
        if whole:
            return _given(values, *whole.groups())
        return REFERENCE.sub(lambda match: str(_given(values, *match.groups())), text)

    return _map_texts(value, put_in)


def with_paths(value: Any, folder: Path) -> Any:
    """`value` with every text that begins with ./ or ../ as a path from the root of the file system."""

    def absolute(text: str) -> str:
        if not text.startswith(("./", "../")):
            return text
        # Not resolved: the user's links stay as they are; only the dots go.
        parts: list[str] = []
        for part in (folder / text).parts:
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
        return str(Path(*parts))

    return _map_texts(value, absolute)


def step_named_by(parameters: Mapping[str, Any], parameter: str) -> str | None:
    """The step that one parameter refers to; None where it is a value of the user's own."""
    steps = named_steps(parameters.get(parameter))
    return steps[0] if steps else None


def references(value: Any) -> tuple[tuple[str, str], ...]:
    """All (step, name) that references in `value` name, in their order, each once."""
    return tuple(dict.fromkeys(found for text in _texts(value) for found in _references(text)))


def _references(text: str) -> list[tuple[str, str]]:
    found = REFERENCE.findall(text)
    if text.count("${") != len(found):
        raise ParameterError(f"{text!r}: expected references of the form ${{step.value}}")
    return found


def _given(values: Mapping[str, Mapping[str, Any]], step: str, name: str) -> Any:
    given = values.get(step, {})
    if name not in given:
        raise ParameterError(
            f"${{{step}.{name}}}: step {step} gives no {name!r}; it gives {', '.join(given) or 'none'}"
        )
    return given[name]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _map_texts(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value
