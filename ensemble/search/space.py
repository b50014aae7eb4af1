"""The search space: a DeepHyper HpProblem as unit vectors and back.

A configuration is a dict of plain JSON values in the space's order, None where a condition makes the hyperparameter
inactive.  Its vector has a number a hyperparameter, as ConfigSpace has them: in [0, 1] for a range (logarithmic ones on
a logarithmic scale), the index of the choice for ordinal and categorical ones, NaN where inactive.  Vectors come as
float64 arrays (configurations, hyperparameters).

A child of an inactive hyperparameter is inactive, whatever its own condition says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.core.errors import ParameterError

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

    from ensemble.search.definition import Configuration

Key = tuple[Any, ...]

SAMPLING_ROUNDS = 100
GRID_CHUNK = 4096
# A finite space of at most so many points is enumerated where drawing at random finds nothing (fresh) any more.
ENUMERABLE = 2_000_000
# Steps of neighbours(): standard deviations in units of a range, drawn log-uniformly between these.
STEP_MIN, STEP_MAX = 0.003, 0.3


def plain_configuration(configuration: Mapping[str, Any]) -> Configuration:
    """The same values as JSON types: numpy scalars unpacked, NaN (an inactive hyperparameter) as None."""

    def plain(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: plain(value) for name, value in configuration.items()}


class SearchSpace:
    """What can be suggested.

    Raises ParameterError where `problem` is no HpProblem, has no free hyperparameter, a hyperparameter of an unknown
    kind, choices that are no plain JSON values or its default outside its range, or where every configuration is
    forbidden.

    Attributes:
        names: the hyperparameters in order; parents of conditions before their children.
        choices: how many values each has; inf for a real range.
        categorical, ordinal: which of them have choices without an order, and with one.
        size: how many configurations there are at most; inf where there is a real range.
    """

    def __init__(self, problem: HpProblem) -> None:
        if not hasattr(problem, "space"):
            raise ParameterError(f"the search's problem is a {type(problem).__name__}; expected a deephyper HpProblem")
        space = problem.space
        self.names: list[str] = list(space.at)
        self._hyperparameters = [space[name] for name in self.names]
        self._listed = [_listed_values(hyperparameter) for hyperparameter in self._hyperparameters]
        self._coordinate = [
            None if values is None else {value: float(h.to_vector(value)) for value in values}
            for h, values in zip(self._hyperparameters, self._listed, strict=True)
        ]
        self.choices = np.array([float(h.size) for h in self._hyperparameters])
        self.categorical = np.array([hasattr(h, "choices") for h in self._hyperparameters], bool)
        self.ordinal = np.array([hasattr(h, "sequence") for h in self._hyperparameters], bool)
        self.size = float(np.prod(self.choices))
        if not (self.choices > 1).any():
            raise ParameterError("the search's problem has no free hyperparameter; add one with a range or choices")
        for hyperparameter in self._hyperparameters:
            _check(hyperparameter)
        self._conditions = sorted(space.conditions, key=lambda condition: int(condition.child_vector_id))
        self._forbidden = list(space.forbidden_clauses)
        if not len(self.sample(1, np.random.default_rng(0))):
            raise ParameterError("the search's problem forbids every configuration; remove a forbidden clause")

    # --- vectors and configurations

    def configurations(self, vectors: np.ndarray) -> list[Configuration]:
        """The configurations of vectors (n, hyperparameters)."""
        columns = [self._values(i, vectors[:, i]) for i in range(len(self.names))]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def configuration(self, vector: np.ndarray) -> Configuration:
        """The configuration of one vector."""
        return self.configurations(vector[None])[0]

    def vectors(self, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The vectors (n, hyperparameters) of configurations; a value for an inactive hyperparameter is passed over.

        Raises ParameterError for a configuration of other hyperparameters, or a value that this space has not.
        """
        vectors = np.full((len(configurations), len(self.names)), np.nan)
        for configuration in configurations:
            if set(configuration) != set(self.names):
                raise ParameterError(
                    f"a configuration of {', '.join(map(str, configuration))}; this search's hyperparameters are "
                    f"{', '.join(self.names)}"
                )
        for i, name in enumerate(self.names):
            values = [configuration[name] for configuration in configurations]
            there = np.array([value is not None for value in values], bool)
            vectors[there, i] = self._coordinates(i, [value for value in values if value is not None])
        missing = np.isnan(vectors)
        self._deactivate(vectors)
        lacking = missing & ~np.isnan(self._activated(vectors, missing))
        if lacking.any():
            row, column = np.argwhere(lacking)[0]
            raise ParameterError(
                f"{self.names[column]} has no value in {dict(configurations[row])}; expected one, as it is active there"
            )
        return vectors

    def vector(self, configuration: Mapping[str, Any]) -> np.ndarray:
        """The vector of one configuration."""
        return self.vectors([configuration])[0]

    def key(self, configuration: Mapping[str, Any], vector: np.ndarray) -> Key:
        """What two configurations share where they are the same one; `vector` is the configuration's."""
        inactive = np.isnan(vector)
        return tuple(None if inactive[i] else configuration[name] for i, name in enumerate(self.names))

    # --- making vectors

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """At most `count` allowed vectors, drawn from the hyperparameters' distributions; there may be repetitions.

        Fewer (or none) only where nearly everything, or everything, is forbidden.
        """
        found: list[np.ndarray] = []
        missing = count
        for _ in range(SAMPLING_ROUNDS):
            if missing <= 0:
                break
            drawn = self.allowed(self._draw(max(missing, 16), rng))[:missing]
            found.append(drawn)
            missing -= len(drawn)
        if missing > 0 and self.size <= ENUMERABLE:
            for chunk in self.grid():
                found.append(chunk[:missing])
                missing -= len(found[-1])
                if missing <= 0:
                    break
        return np.concatenate([np.empty((0, len(self.names))), *found])

    def neighbours(self, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One random neighbour of each vector, without those that are forbidden.

        Some of its hyperparameters move: a range by a normal step, reflected at its ends; an ordinal one to a choice
        nearby; a categorical one to any choice.  What becomes active is drawn anew.
        """
        n, d = vectors.shape
        fresh = self._draw(n, rng)
        step = np.exp(rng.uniform(math.log(STEP_MIN), math.log(STEP_MAX), (n, 1)))
        moves = rng.random((n, d)) < rng.choice([1.5 / d, 0.5, 1.0], (n, 1))
        moves[np.arange(n), self._one_free_active(vectors, rng)] = True
        moved = np.where(np.isnan(vectors), fresh, vectors)
        noise = rng.standard_normal((n, d)) * step
        for i in np.flatnonzero(self.choices > 1):
            if self._listed[i] is None:
                # An integer range moves by at least about one value.
                width = 0.0 if math.isinf(self.choices[i]) else 0.7 / (self.choices[i] - 1)
                stepped = _reflect(moved[:, i] + np.sign(noise[:, i]) * np.maximum(np.abs(noise[:, i]), width), 1.0)
            elif self.categorical[i]:
                stepped = fresh[:, i]
            else:
                last = self.choices[i] - 1
                jump = np.sign(noise[:, i]) * np.maximum(1, np.round(np.abs(noise[:, i]) * last))
                stepped = np.clip(moved[:, i] + jump, 0, last)
            moved[:, i] = np.where(moves[:, i], stepped, moved[:, i])
        return self.allowed(moved)

    def allowed(self, vectors: np.ndarray) -> np.ndarray:
        """The vectors with integers rounded and inactive hyperparameters NaN, without those that are forbidden."""
        vectors = vectors.copy()
        for i, hyperparameter in enumerate(self._hyperparameters):
            if self._listed[i] is None and math.isfinite(self.choices[i]):
                vectors[:, i] = hyperparameter.to_vector(hyperparameter.to_value(vectors[:, i]))
        self._deactivate(vectors)
        forbidden = np.zeros(len(vectors), bool)
        with np.errstate(invalid="ignore"):
            for clause in self._forbidden:
                forbidden |= clause.is_forbidden_vector_array(vectors.T)
        return vectors[~forbidden]

    def grid(self, points: int | None = None) -> Iterator[np.ndarray]:
        """Every allowed vector once, in lexicographic order, in chunks (n, hyperparameters) that may be empty.

        A range of more than `points` values is scanned at `points` places, evenly from end to end on its own scale;
        None scans every value.  Raises ParameterError where a real range is to be scanned at every value.
        """
        if points is None and math.isinf(self.size):
            raise ParameterError("a grid of a space with a real range needs a number of points; expected at least 1")
        levels = [self._levels(i, points) for i in range(len(self.names))]
        total = math.prod(len(level) for level in levels)
        seen: set[bytes] = set()
        for start in range(0, total, GRID_CHUNK):
            digits = np.unravel_index(
                np.arange(start, min(start + GRID_CHUNK, total)), [len(level) for level in levels]
            )
            vectors = self.allowed(np.stack([level[digit] for level, digit in zip(levels, digits, strict=True)], 1))
            if self._conditions:  # several points of the full grid are one where a hyperparameter is inactive
                rows = {row.tobytes(): i for i, row in reversed(list(enumerate(vectors)))}
                vectors = vectors[sorted(i for row, i in rows.items() if row not in seen)]
                seen.update(rows)
            yield vectors

    # --- parts

    def _levels(self, i: int, points: int | None) -> np.ndarray:
        coordinates = self._coordinate[i]
        if coordinates is not None:
            return np.array(list(coordinates.values()))
        hyperparameter = self._hyperparameters[i]
        if math.isfinite(self.choices[i]) and (points is None or self.choices[i] <= points):
            values = np.arange(hyperparameter.lower, hyperparameter.upper + 1)
            return np.asarray(hyperparameter.to_vector(values), float)
        assert points is not None
        places = np.linspace(0, 1, points) if points > 1 else np.array([0.5])
        if math.isinf(self.choices[i]):
            return places
        return np.unique(hyperparameter.to_vector(hyperparameter.to_value(places)))

    def _draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Vectors drawn without regard to conditions and forbidden clauses."""
        state = np.random.RandomState(rng.integers(2**31))  # what ConfigSpace's distributions take
        return np.stack(
            [hyperparameter.sample_vector(count, seed=state) for hyperparameter in self._hyperparameters], 1
        )

    def _one_free_active(self, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each vector the index of one active hyperparameter that has several values."""
        weights = rng.random(vectors.shape) * (self.choices > 1) * ~np.isnan(vectors)
        return np.argmax(weights, axis=1)

    def _deactivate(self, vectors: np.ndarray) -> None:
        """Make NaN what the conditions make inactive, in place."""
        columns = vectors.T  # a view, as ConfigSpace has it: hyperparameters in rows
        for condition in self._conditions:
            columns[condition.child_vector_id, ~_satisfied(condition, columns)] = np.nan

    def _activated(self, vectors: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """The vectors with 0 in place of what is missing, then deactivated: what is left of it is active."""
        filled = np.where(missing, 0.0, vectors)
        self._deactivate(filled)
        return filled

    def _values(self, i: int, column: np.ndarray) -> list[Any]:
        listed, active = self._listed[i], ~np.isnan(column)
        values: list[Any] = [None] * len(column)
        if listed is not None:
            for row in np.flatnonzero(active):
                values[row] = listed[int(column[row]) if len(listed) > 1 else 0]
            return values
        hyperparameter = self._hyperparameters[i]
        # Rounding must not carry a value past an end of its range.
        found = np.clip(hyperparameter.to_value(column[active]), hyperparameter.lower, hyperparameter.upper)
        for row, value in zip(np.flatnonzero(active), found.tolist(), strict=True):
            values[row] = value
        return values

    def _coordinates(self, i: int, values: list[Any]) -> np.ndarray:
        coordinates, hyperparameter = self._coordinate[i], self._hyperparameters[i]
        if coordinates is not None:
            unknown = [value for value in values if value not in coordinates]
            if unknown:
                known = ", ".join(map(repr, coordinates))
                raise ParameterError(f"{self.names[i]} = {unknown[0]!r}: expected one of {known} in this space")
            return np.array([coordinates[value] for value in values], float)
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = math.isinf(self.choices[i]) or (number and float(value).is_integer())
            if not number or not whole or not hyperparameter.lower <= value <= hyperparameter.upper:
                kind = "a number" if math.isinf(self.choices[i]) else "an integer"
                raise ParameterError(
                    f"{self.names[i]} = {value!r}: expected {kind} in {hyperparameter.lower} ... "
                    f"{hyperparameter.upper} in this space"
                )
        return np.asarray(hyperparameter.to_vector(np.array(values)), float) if values else np.empty(0)


def _satisfied(condition: Any, columns: np.ndarray) -> np.ndarray:
    """Where a condition holds, over columns (hyperparameters, n); never where its parent is inactive."""
    from ConfigSpace import AndConjunction, OrConjunction

    if isinstance(condition, AndConjunction | OrConjunction):
        parts = [_satisfied(component, columns) for component in condition.components]
        return np.all(parts, axis=0) if isinstance(condition, AndConjunction) else np.any(parts, axis=0)
    there: np.ndarray = ~np.isnan(columns[condition.parent_vector_id])
    return there & condition.satisfied_by_vector_array(columns)


def _listed_values(hyperparameter: Any) -> tuple[Any, ...] | None:
    """The values of a hyperparameter that lists them; None for a range."""
    for attribute in ("choices", "sequence"):
        if hasattr(hyperparameter, attribute):
            return tuple(_plain_choice(hyperparameter.name, value) for value in getattr(hyperparameter, attribute))
    return (_plain_choice(hyperparameter.name, hyperparameter.value),) if hasattr(hyperparameter, "value") else None


def _plain_choice(name: str, value: Any) -> str | int | float | bool:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ParameterError(f"{name}: the choice {value!r} is no text, finite number or truth value; name it by one")
    return value


def _check(hyperparameter: Any) -> None:
    known = any(hasattr(hyperparameter, attribute) for attribute in ("choices", "sequence", "value", "lower"))
    if not known:
        raise ParameterError(
            f"{hyperparameter.name}: a {type(hyperparameter).__name__}; expected a range, choices or a constant"
        )
    if not hyperparameter.legal_value(hyperparameter.default_value):
        raise ParameterError(
            f"{hyperparameter.name}: its default {hyperparameter.default_value!r} is outside its range; give one inside"
        )


def _reflect(values: np.ndarray, upper: float) -> np.ndarray:
    """Values folded back into [0, upper] at its ends."""
    folded = np.mod(values, 2 * upper)
    return np.minimum(folded, 2 * upper - folded)
