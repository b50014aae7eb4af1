"""When two objects of a deployment are one: what a command says of it, and what holds from then on.

The rule is no part of what a deployment is: changed, it has the objects put together anew, and nothing segmented again.
What a command does not say stays as it was in the last run.  Tables of pairs are kept as copies whose names tell their
content, so that jobs read what they were given, whatever becomes of the user's files meanwhile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import file_in_the_making, make_folder
from apps.core.parameters import Parameters
from apps.core.supervoxels import LOCAL_BITS
from apps.reconciliation.linking import LinkRule
from apps.reconciliation.pair_lists import read_pairs
from apps.reconciliation.solution import SUMMARY, SolutionRecord
from apps.reconciliation.solving import Rules

# In the place of a table: no pairs, where the last run had some.
NO_TABLE = "none"
_FOLDER = "links"
_SOLUTION = "solution"  # in the work folder of reconciliation

Pairs = NDArray[np.uint64]


@dataclass(frozen=True)
class LinkChoices:
    """What is said about when two objects are one; None: as in the last run, or else as by default.

    Attributes:
        min_overlap_voxels, min_overlap_fraction, mutual_maximum: see apps.reconciliation.linking.LinkRule.
        cut, forbidden: tables of pairs of supervoxels (see apps.reconciliation.settings), or NO_TABLE.
    """

    min_overlap_voxels: int | None = None
    min_overlap_fraction: float | None = None
    mutual_maximum: bool | None = None
    cut: str | None = None
    forbidden: str | None = None


class PairTable(Parameters, frozen=True, kw_only=True):
    """A table of pairs of supervoxels."""

    given: Annotated[str, Meta(description="the user's file")]
    file: Annotated[str, Meta(description="the deployment's copy of it, Parquet with the columns a and b")]
    pairs: Annotated[int, Meta(ge=1, description="how many different ones it has")]
    sha256: Annotated[str, Meta(description="of the pairs, sorted, as uint64 in C order")]


class LinkRules(Parameters, frozen=True, kw_only=True):
    """All that decides on links."""

    rule: Annotated[LinkRule, Meta(description="when two objects are one")] = LinkRule()
    cut: Annotated[PairTable | None, Meta(description="links that are not used")] = None
    forbidden: Annotated[PairTable | None, Meta(description="supervoxels that are kept apart")] = None
    identity: Annotated[str, Meta(description="what a solution by these rules says of them (Rules.hash)")] = Rules(
        LinkRule()
    ).hash()

    def parameters(self) -> dict[str, Any]:
        """Those of the stage `reconciliation`."""
        return {
            **self.rule.to_dict(),
            "cut": self.cut.file if self.cut else None,
            "forbidden": self.forbidden.file if self.forbidden else None,
        }

    def __str__(self) -> str:
        mutual = "each the other's largest" if self.rule.mutual_maximum else "whether the largest or not"
        text = (
            f"at least {self.rule.min_overlap_voxels} voxels and {100 * self.rule.min_overlap_fraction:g} % of the "
            f"larger, {mutual}"
        )
        tables = (("cut", self.cut), ("kept apart", self.forbidden))
        return text + "".join(f"; {_count(table)} {what}" for what, table in tables if table is not None)


def choose_rules(choices: LinkChoices, before: LinkRules, folder: Path, subvolumes: int) -> LinkRules:
    """What holds from now on in a deployment of so many subvolumes: what is said, and of the rest what held before.

    Writes nothing.  Raises DataError where a table cannot be read or is of other subvolumes, ParameterError where a
    number is out of its range.
    """
    said = {name: getattr(choices, name) for name in LinkRule.__struct_fields__}
    rule = LinkRule(**{**before.rule.to_dict(), **{name: value for name, value in said.items() if value is not None}})
    cut, cut_pairs = _choose_table("cut", choices.cut, before.cut, folder, subvolumes)
    forbidden, forbidden_pairs = _choose_table("forbidden", choices.forbidden, before.forbidden, folder, subvolumes)
    identity = Rules(rule, cut_pairs, forbidden_pairs).hash()
    return LinkRules(rule=rule, cut=cut, forbidden=forbidden, identity=identity)


def keep_tables(rules: LinkRules) -> None:
    """Have the deployment's copies of the tables.

    Raises StateError where a file has changed since `choose_rules` has read it, DataError where one cannot be written.
    """
    for table in (rules.cut, rules.forbidden):
        if table is None or Path(table.file).is_file():
            continue
        pairs = read_pairs(table.given)
        if _sha256(pairs) != table.sha256:
            raise StateError(f"{table.given}: has changed just now; give the same command again")
        make_folder(Path(table.file).parent)
        with file_in_the_making(table.file) as partial:
            pq.write_table(pa.table({"a": pairs[:, 0], "b": pairs[:, 1]}), partial)


def changes(before: LinkRules, now: LinkRules) -> str:
    """What is different, as text; empty where nothing is."""
    told = []
    for name in LinkRule.__struct_fields__:
        old, new = getattr(before.rule, name), getattr(now.rule, name)
        if old != new:
            told.append(f"{name.replace('_', ' ')} {old} -> {new}")
    for name, first, second in (("cut", before.cut, now.cut), ("forbidden", before.forbidden, now.forbidden)):
        if (first and first.sha256) != (second and second.sha256):
            told.append(f"{name} {_count(first)} -> {_count(second)}")
    return ", ".join(told)


def solved_by(work: Path) -> str | None:
    """Identity of the rules that the solution in a work folder is by; None where none is there, or a damaged one."""
    try:
        return SolutionRecord.load(work / _SOLUTION / SUMMARY).rules
    except (DataError, ParameterError):
        return None


def _choose_table(
    name: str, said: str | None, before: PairTable | None, folder: Path, subvolumes: int
) -> tuple[PairTable | None, Pairs]:
    if said is None and before is not None:
        return before, _read_kept(name, before)
    if said is None or said == NO_TABLE:
        return None, read_pairs(None)
    given = Path(said).absolute()
    pairs = read_pairs(str(given))
    if not len(pairs):
        return None, pairs
    last = int(pairs.max()) >> LOCAL_BITS
    if last >= subvolumes:
        raise DataError(
            f"{given}: names the supervoxel {pairs.max()}, which is of subvolume {last}; the deployment has "
            f"{subvolumes}, from 0 on: is the table of another one?"
        )
    digest = _sha256(pairs)
    file = folder / _FOLDER / f"{name}-{digest[:16]}.parquet"
    return PairTable(given=str(given), file=str(file), pairs=len(pairs), sha256=digest), pairs


def _read_kept(name: str, table: PairTable) -> Pairs:
    """The pairs of the last run, from its copy or, where that is not there yet, from the user's file."""
    file = table.file if Path(table.file).is_file() else table.given
    try:
        pairs = read_pairs(file)
    except DataError as error:
        raise DataError(f"{error}.  The last run had it: give --{name} again, or --{name} {NO_TABLE}") from error
    if _sha256(pairs) != table.sha256:
        raise DataError(
            f"{file}: holds other pairs than in the last run; give --{name} {table.given}, or --{name} {NO_TABLE}"
        )
    return pairs


def _sha256(pairs: Pairs) -> str:
    return hashlib.sha256(pairs.tobytes()).hexdigest()


def _count(table: PairTable | None) -> str:
    return "none" if table is None else f"{table.pairs} {'pair' if table.pairs == 1 else 'pairs'}"
