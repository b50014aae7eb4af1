"""Search spaces that every optimiser must cope with, and a function of their configurations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ConfigSpace

from ensemble.search.definition import Configuration

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem


def problem() -> HpProblem:
    from deephyper.hpo import HpProblem

    return HpProblem()


def plain() -> HpProblem:
    """Three real ranges, one of them logarithmic."""
    made = problem()
    made.add_hyperparameter((-5.0, 10.0), "x")
    made.add_hyperparameter((0.0, 1.0), "y")
    made.add_hyperparameter((1e-5, 1e-1, "log-uniform"), "z")
    return made


def conditional() -> HpProblem:
    """`width` for kind b alone, `deep` where b is wide; `rate` for b and c."""
    made = problem()
    kind = made.add_hyperparameter(["a", "b", "c"], "kind")
    width = made.add_hyperparameter((1, 64, "log-uniform"), "width")
    deep = made.add_hyperparameter([True, False], "deep")
    rate = made.add_hyperparameter((1e-4, 1.0, "log-uniform"), "rate")
    made.add_condition(ConfigSpace.EqualsCondition(width, kind, "b"))
    made.add_condition(ConfigSpace.GreaterThanCondition(deep, width, 8))
    made.add_condition(ConfigSpace.InCondition(rate, kind, ["b", "c"]))
    return made


def forbidden() -> HpProblem:
    """No large x with kind a, and never n = 3."""
    made = problem()
    x = made.add_hyperparameter((0.0, 1.0), "x")
    n = made.add_hyperparameter((1, 5), "n", default_value=2)
    kind = made.add_hyperparameter(["a", "b"], "kind", default_value="b")
    made.add_forbidden_clause(ConfigSpace.ForbiddenEqualsClause(n, 3))
    made.add_forbidden_clause(
        ConfigSpace.ForbiddenAndConjunction(
            ConfigSpace.ForbiddenEqualsClause(kind, "a"), ConfigSpace.ForbiddenGreaterThanClause(x, 0.5)
        )
    )
    return made


def mixed() -> HpProblem:
    """Integers, ordered and unordered choices, truth values, a constant."""
    made = problem()
    made.add_hyperparameter((1, 1000, "log-uniform"), "n")
    made.add_hyperparameter((-3, 3), "m")
    made.add_hyperparameter([8, 16, 32, 64], "features")
    made.add_hyperparameter([0.5, 1, 2], "taper")
    made.add_hyperparameter(["none", "batch", "group"], "normalisation")
    made.add_hyperparameter([True, False], "flip")
    made.add_hyperparameter("fixed", "constant")
    return made


def tiny() -> HpProblem:
    """Seven configurations: four of kind a, and three of kind b, for which `n` is inactive."""
    made = problem()
    kind = made.add_hyperparameter(["a", "b"], "kind")
    n = made.add_hyperparameter((1, 2), "n")
    m = made.add_hyperparameter([1, 2, 3], "m")
    made.add_condition(ConfigSpace.EqualsCondition(n, kind, "a"))
    made.add_forbidden_clause(
        ConfigSpace.ForbiddenAndConjunction(
            ConfigSpace.ForbiddenEqualsClause(kind, "a"), ConfigSpace.ForbiddenEqualsClause(m, 3)
        )
    )
    return made


SPACES: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "conditional": conditional,
    "forbidden": forbidden,
    "mixed": mixed,
    "tiny": tiny,
}


def allowed(name: str, c: Configuration) -> bool:
    """Whether a configuration is one of the space, written down again by hand."""
    if name == "plain":
        return -5 <= c["x"] <= 10 and 0 <= c["y"] <= 1 and 1e-5 <= c["z"] <= 1e-1
    if name == "conditional":
        wide = c["kind"] == "b" and c["width"] > 8
        return (
            (c["width"] is not None) == (c["kind"] == "b")
            and (c["deep"] is not None) == wide
            and (c["rate"] is not None) == (c["kind"] != "a")
        )
    if name == "forbidden":
        return c["n"] in (1, 2, 4, 5) and 0 <= c["x"] <= (0.5 if c["kind"] == "a" else 1)
    if name == "mixed":
        return (
            isinstance(c["n"], int)
            and 1 <= c["n"] <= 1000
            and c["m"] in range(-3, 4)
            and c["features"] in (8, 16, 32, 64)
            and c["taper"] in (0.5, 1, 2)
            and c["flip"] in (True, False)
            and c["constant"] == "fixed"
        )
    return (c["kind"] == "b" and c["n"] is None) or (c["kind"] == "a" and c["n"] in (1, 2) and c["m"] != 3)


def value(configuration: Configuration) -> float:
    """Some objective, smooth in all numbers."""
    total = 0.0
    for i, found in enumerate(configuration.values()):
        if isinstance(found, bool) or found is None:
            total += 0.1 * bool(found)
        elif isinstance(found, str):
            total += len(found) * 0.2
        else:
            total -= math.log10(abs(found) + 0.1 * (i + 1)) ** 2
    return total
