"""What search_resume calls lost, repeated and rewritten, on journals made by hand."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.objectives import DIMENSIONS, NAMES, ackley, optimum_of
from benchmarks.search_resume import Cut, Verdict, events, judge

OPTIMUM = optimum_of(1)
POINTS = [(float(number),) * DIMENSIONS for number in range(4)]


def suggested(trial: int, point: tuple[float, ...]) -> dict[str, Any]:
    return {"event": "suggested", "trial": trial, "configuration": dict(zip(NAMES, point, strict=True))}


def ended(trial: int, point: tuple[float, ...]) -> dict[str, Any]:
    return {"event": "ended", "trial": trial, "objectives": [ackley(point, OPTIMUM)]}


def journal(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


WHOLE = [suggested(0, POINTS[0]), suggested(1, POINTS[1]), ended(0, POINTS[0]), ended(1, POINTS[1])]


def test_a_search_that_goes_on_has_lost_and_repeated_nothing() -> None:
    """Trial 1 ran when the driver was killed, and ran again: that is no repetition of what had ended."""
    cut = Cut(journal(*WHOLE[:3]) + b'{"event": "end', evaluations=2)
    verdict = judge(journal(*WHOLE), [0, 1, 1], [cut], OPTIMUM)
    assert verdict == Verdict(trials=2, lost=0, repeated=0, rewritten=0, again=1)


def test_what_has_not_ended_or_has_another_objective_is_lost() -> None:
    wrong = ended(1, POINTS[2])
    assert judge(journal(*WHOLE[:3]), [0, 1], [], OPTIMUM).lost == 1
    assert judge(journal(*WHOLE[:3], wrong), [0, 1], [], OPTIMUM).lost == 1


def test_a_configuration_twice_and_a_finished_trial_that_runs_again_are_repetitions() -> None:
    again = [*WHOLE, suggested(2, POINTS[0]), ended(2, POINTS[0])]
    assert judge(journal(*again), [0, 1], [], OPTIMUM).repeated == 1
    cut = Cut(journal(*WHOLE), evaluations=2)
    assert judge(journal(*WHOLE), [0, 1, 0], [cut], OPTIMUM).repeated == 1
    assert judge(journal(*WHOLE, ended(1, POINTS[1])), [0, 1], [], OPTIMUM).repeated == 1


def test_a_journal_that_does_not_begin_as_it_was_left_is_rewritten() -> None:
    cut = Cut(journal(*WHOLE[:2], ended(1, POINTS[1])), evaluations=2)
    assert judge(journal(*WHOLE), [0, 1], [cut], OPTIMUM).rewritten == 1


def test_a_torn_line_is_no_event() -> None:
    assert events(journal(WHOLE[0]) + b'{"eve', "suggested") == WHOLE[:1]
    assert events(b"", "ended") == []
