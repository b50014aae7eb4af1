"""Matching two sections."""

from __future__ import annotations

import numpy as np
import pytest

from apps.alignment.matching import match_sections
from apps.alignment.settings import MatchSettings
from apps.core.errors import ParameterError
from tests.apps.alignment.synthetic import EXTENT, acquire, in_memory, stack, texture

FINE = MatchSettings(spacing=16, finest=1)


def test_points_of_the_tissue_are_found_on_both() -> None:
    first, second = stack(2)
    found = match_sections(first.volume, second.volume, FINE)
    assert found.accepted
    assert found.matched > 0.7
    off = np.hypot(*(first.on_block(found.first) - second.on_block(found.second)).T)
    assert np.sqrt(np.mean(off**2)) < 0.5
    assert off.max() < 2
    assert (found.weight > 0.3).all()


def test_sections_without_anything_in_common_do_not_match() -> None:
    first, other = stack(1)[0], stack(1, seed=7)[0]
    found = match_sections(first.volume, other.volume, FINE)
    assert not found.accepted
    assert len(found.first) == 0
    empty = match_sections(first.volume, in_memory(np.zeros((EXTENT, EXTENT), np.uint8)), FINE)
    assert (empty.accepted, empty.matched) == (False, 0.0)


def test_damage_in_one_corner_costs_the_matches_there_only() -> None:
    first, second = stack(2)
    second.image[:60, :60] = np.random.default_rng(0).integers(1, 255, (60, 60))
    found = match_sections(first.volume, second.volume, FINE)
    assert found.accepted
    off = np.hypot(*(first.on_block(found.first) - second.on_block(found.second)).T)
    assert off.max() < 2.5


def test_sections_of_different_shapes() -> None:
    first, second = stack(2)
    found = match_sections(in_memory(first.image[:130]), in_memory(second.image[:, :136]), FINE)
    assert found.accepted
    off = first.on_block(found.first) - second.on_block(found.second)
    assert np.sqrt(np.mean(np.sum(off**2, axis=1))) < 0.6


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (acquire(plane, z) for z, plane in enumerate(texture(2)))
    whole = match_sections(first.volume, second.volume, FINE)
    monkeypatch.setattr("apps.alignment.matching._TILE", 64)
    tiled = match_sections(first.volume, second.volume, FINE)
    same = (whole.first[:, None] == tiled.first).all(axis=-1)
    a, b = np.nonzero(same)
    assert len(a) > 0.95 * len(whole.first)
    assert np.abs(whole.second[a] - tiled.second[b]).max() < 0.05


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ParameterError, match="reach 1"):
        MatchSettings(reach=1, neighbours=2)
    with pytest.raises(ParameterError, match="multiple of finest"):
        MatchSettings(spacing=33, finest=2)
