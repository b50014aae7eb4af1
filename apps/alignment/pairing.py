"""Which sections are matched with which, and the matches on disk: a file a pair.

A section is matched with the usable ones before it, nearest first, until `neighbours` of them match: over a missing or
damaged one it reaches further by itself.  What is matched for one section depends on no other job.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.alignment.matching import Matches, match_sections
from apps.alignment.poses import Pair
from apps.alignment.settings import MatchSettings
from apps.alignment.stack import Stack
from apps.alignment.storage import load_matches, pair_path, save_matches
from apps.core.errors import StateError
from apps.core.parameters import json_hash
from apps.core.stage import code_version


@dataclass(frozen=True)
class MatchedPair:
    """The outcome for the sections `a` < `b`, with the hash of all that it depends on."""

    a: int
    b: int
    identity: str
    matches: Matches

    def points(self) -> Pair:
        m = self.matches
        return Pair(self.a, self.b, m.first, m.second, m.weight, m.rigid)


def match_section(stack: Stack, section: int, settings: MatchSettings, output: Path) -> tuple[int, int]:
    """Match a section with earlier ones, those excepted that have been; returns how many pairs were made, and found."""
    made = kept = accepted = 0
    for earlier in stack.earlier(section, settings.reach) if stack.usable(section) else []:
        if accepted == settings.neighbours:
            break
        path, identity = pair_path(output, earlier, section), _identity(stack, earlier, section, settings)
        matches = load_matches(path, identity)
        if matches is None:
            matches = match_sections(stack.image(earlier), stack.image(section), settings)
            save_matches(path, matches, identity)
            made += 1
        else:
            kept += 1
        accepted += matches.accepted
    return made, kept


def matched_pairs(stack: Stack, section: int, settings: MatchSettings, output: Path) -> Iterator[MatchedPair]:
    """What `match_section` found, from disk.  Raises StateError where it has not been run with these settings."""
    accepted = 0
    for earlier in stack.earlier(section, settings.reach) if stack.usable(section) else []:
        if accepted == settings.neighbours:
            return
        identity = _identity(stack, earlier, section, settings)
        matches = load_matches(pair_path(output, earlier, section), identity)
        if matches is None:
            raise StateError(
                f"sections {earlier} and {section} have not been matched with these parameters and images; "
                f'run the action "match" for section {section} first'
            )
        accepted += matches.accepted
        yield MatchedPair(earlier, section, identity, matches)


def _identity(stack: Stack, a: int, b: int, settings: MatchSettings) -> str:
    """Hash of what a pair's matches depend on; which pairs there are is another question."""
    chosen = {key: value for key, value in settings.to_dict().items() if key not in ("neighbours", "reach")}
    return json_hash([chosen, stack.digest(a).digest, stack.digest(b).digest, code_version()])
