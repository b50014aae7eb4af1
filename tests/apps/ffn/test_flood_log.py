"""The flood log: what was written before a kill is there after it, and nothing that was cut short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, StateError
from apps.ffn.flood_log import FloodLog
from apps.ffn.segmenter import Outcome

BOX = Box.of((1, 2, 3), (4, 5, 7))


def outcomes() -> list[Outcome]:
    rng = np.random.default_rng(0)
    mask, probability = rng.random(BOX.shape) > 0.5, rng.integers(0, 256, BOX.shape).astype(np.uint8)
    return [
        Outcome(0, 3, True, 0, BOX, None, None),
        Outcome(4, 9, False, int(mask.sum()), BOX, mask, None),
        Outcome(5, 2, False, int(mask.sum()), BOX, mask, probability),
    ]


def filled(path: Path) -> FloodLog:
    log = FloodLog(path, "this one")
    for outcome in outcomes():
        log.append(outcome)
    log.close()
    return log


def same(a: Outcome, b: Outcome) -> bool:
    arrays = all(
        (p is None and q is None) or (p is not None and q is not None and np.array_equal(p, q) and p.dtype == q.dtype)
        for p, q in ((a.mask, b.mask), (a.probability, b.probability))
    )
    return a[:5] == b[:5] and arrays


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    filled(tmp_path / "log")
    found = list(FloodLog(tmp_path / "log", "this one").outcomes())
    assert len(found) == 3
    assert all(map(same, found, outcomes()))


def test_every_cut_leaves_the_whole_records_and_can_be_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path)
    data = path.read_bytes()
    counts = []
    for length in range(0, len(data) + 1, 7):
        path.write_bytes(data[:length])
        log = FloodLog(path, "this one")
        known = len(list(log.outcomes()))
        counts.append(known)
        for outcome in outcomes()[known:]:
            log.append(outcome)
        log.close()
        assert path.read_bytes() == data
    assert counts == sorted(counts)
    assert set(counts) >= {0, 1, 2}


def test_a_damaged_record_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    filled(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert len(list(FloodLog(path, "this one").outcomes())) == 2


def test_the_log_of_another_segmentation_is_begun_anew(tmp_path: Path) -> None:
    filled(tmp_path / "log")
    assert list(FloodLog(tmp_path / "log", "another").outcomes()) == []
    assert list(FloodLog(tmp_path / "log", "this one").outcomes()) == []


def test_it_goes_when_it_is_not_needed(tmp_path: Path) -> None:
    filled(tmp_path / "log").remove()
    assert not (tmp_path / "log").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/log: cannot be written"):
        FloodLog(tmp_path / "none" / "log", "this one")


def test_a_log_that_another_process_has_open_is_refused(tmp_path: Path) -> None:
    log = FloodLog(tmp_path / "log", "this one")
    with pytest.raises(StateError, match="another process"):
        FloodLog(tmp_path / "log", "this one")
    log.close()
    FloodLog(tmp_path / "log", "this one").close()
