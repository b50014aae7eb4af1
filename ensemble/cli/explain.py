"""`ensemble explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.tree import Tree

    from apps.agglomeration.evidence import BaseObject, Explanation


@click.command()
@click.argument("object_id", metavar="OBJECT", type=click.IntRange(min=1))
@click.option(
    "--segmentation",
    required=True,
    type=click.Path(path_type=Path),
    metavar="NAME.zarr",
    help="What it is an object of.",
)
@click.option(
    "--agglomeration",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Tables of the agglomeration.  [default: NAME-agglomeration]",
)
@click.option(
    "--reconciliation",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Tables of the reconciliation.  [default: beside the segmentation that was agglomerated]",
)
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
@click.option("--most", type=click.IntRange(min=1), default=12, show_default=True, help="Rows of one kind to show.")
def explain(
    object_id: int,
    segmentation: Path,
    agglomeration: Path | None,
    reconciliation: Path | None,
    as_json: bool,
    most: int,
) -> None:
    """Why OBJECT of a segmentation is one object: what it was joined from, and on what evidence.

    OBJECT may also be the id of a base object or supervoxel that became part of one.

    \b
    Examples:
      ensemble explain 16777217 --segmentation deployed/agglomerated.zarr
      ensemble explain 16777217 --segmentation deployed/agglomerated.zarr --json
    """
    from apps.agglomeration.evidence import explain as find
    from apps.core.errors import DataError

    if not segmentation.is_dir() or segmentation.suffix != ".zarr":
        raise DataError(f"{segmentation}: is no segmentation; expected the folder NAME.zarr of one")
    found = find(segmentation, object_id, agglomeration, reconciliation)
    if as_json:
        import json

        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    from ensemble.display import output_console

    output_console().print(_tree(found, most))


def _tree(found: Explanation, most: int) -> Tree:
    from rich.tree import Tree

    part = "" if found.object == found.asked else f" (of which {found.asked} is a part)"
    voxels = "" if found.voxels is None else f", {found.voxels:,} voxels"
    tree = Tree(f"[bold]object {found.object}[/bold]{part}{voxels}")
    if found.agglomeration is None:
        tree.add("not agglomerated")
    else:
        joined = [row for row in found.decision_points if not row["refused"]]
        if joined:
            branch = tree.add(
                f"{_count(len(joined), 'decision point')} joined {_count(len(found.base), 'base object')}"
            )
            _rows(branch, [_decision(row) for row in joined], most)
        else:
            tree.add("agglomeration joined it with no other")
        against = [row for row in found.decision_points if row["refused"]]
        if against:
            branch = tree.add(f"{_count(len(against), 'decision point')} between them did not")
            _rows(branch, [f"{_decision(row)}: {row['refused']}" for row in against], most)
    if found.reconciliation is None:
        tree.add("no tables of a reconciliation: its base objects are as they were given")
        return tree
    for base in found.base[:most]:
        _base(tree, base, most)
    if len(found.base) > most:
        tree.add(f"and {_count(len(found.base) - most, 'more base object')} (--json tells all)")
    return tree


def _base(tree: Tree, base: BaseObject, most: int) -> None:
    linked = [row for row in base.links if row["linked"]]
    branch = tree.add(
        f"base object {base.id}: {_count(len(base.supervoxels), 'supervoxel')}, {_count(len(linked), 'link')}"
    )
    parts = [f"supervoxel {item.id}: object {item.local} of subvolume {item.subvolume}" for item in base.supervoxels]
    _rows(branch, parts, most)
    _rows(branch, [_link(row) for row in linked], most)


def _rows(branch: Tree, rows: list[str], most: int) -> None:
    for row in rows[:most]:
        branch.add(row)
    if len(rows) > most:
        branch.add(f"and {len(rows) - most} more (--json tells all)")


def _decision(row: dict[str, Any]) -> str:
    scores = []
    if row["iou"] is not None:
        scores.append(f"IoU {row['iou']:.3f}")
    shares = [row[f"from_{side}_recovers_{other}"] for side in "ab" for other in "ab"]
    if known := [share for share in shares if share is not None]:
        scores.append(f"recovered {min(known):.3f}")
    if deleted := [row[name] for name in ("from_a_deleted", "from_b_deleted") if row[name] is not None]:
        scores.append(f"deleted {max(deleted):.4f}")
    place = f"z {row['z']}, y {row['y']}, x {row['x']}"
    return f"{row['a']} and {row['b']} at {place}: {', '.join(scores) or row['verdict']}"


def _link(row: dict[str, Any]) -> str:
    share = row["shared"] / max(1, min(row["voxels_a"], row["voxels_b"]))
    return (
        f"{row['a']} and {row['b']}: {row['shared']:,} shared voxels, {100 * share:.0f} % of the smaller in the "
        f"overlap of subvolumes {row['subvolume_a']} and {row['subvolume_b']}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
