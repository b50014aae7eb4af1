"""The quality page of a pipeline: gathers the pictures of its stages, and has the analysis package write it."""

from __future__ import annotations

import functools
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import analysis
from analysis.quality import runs_of
from apps.core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Places = Mapping[str, str]
StepLine = analysis.StepLine

WORST = 3  # sections of a step of which there are pictures, besides an ordinary one
MONTAGE_PIXELS = 480  # a side of either half of a montage picture
ACCEPT = "ensemble gate accept {name} {step} --sections {sections}"


@dataclass(frozen=True)
class PageContent:
    """What the page is made of.

    Attributes:
        name: of the pipeline.
        table: of quality; its columns are documented in `analysis.quality`.
        steps: in the order of the pipeline.
        outputs: step -> named places.  All have `stage`, and those that work by sections `output` (a folder).  A
            montage has `tiles` (its table); an alignment may have `montage` (the folder of its input; otherwise that of
            the montage step is taken); a masking may have `masks` (otherwise masks.zarr in its output), `image`
            (otherwise the aligned volume of the alignment step) and `first_section` (number of the section that plane 0
            shows; 0).
        provenance: name -> value.
        commands: (command, what it shows) to look further.
        honest: sentences on what the numbers do not show.
        accept: the command that accepts held sections, with {name}, {step} and {sections} (7,9-12).
        true_errors: of a phantom: columns step, section, error.
    """

    name: str
    table: pd.DataFrame
    steps: tuple[StepLine, ...] = ()
    outputs: Mapping[str, Places] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[tuple[str, str], ...] = ()
    honest: tuple[str, ...] = ()
    accept: str = ACCEPT
    true_errors: pd.DataFrame | None = None


def write_page(path: Path, content: PageContent) -> Path:
    """Write the page, whole or not at all; returns its path.

    A picture that cannot be made is a line on the page.  Raises DataError where the table is not one of quality, or the
    page cannot be written.
    """

    def accept(step: str, sections: Sequence[int]) -> str:
        numbers = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs_of(sections))
        return content.accept.format(name=content.name, step=step, sections=numbers)

    try:
        table = analysis.check_quality_table(content.table)
        pictures, missing = gather_pictures(table, content.outputs)
        page = analysis.QualityPage(
            title=f"pipeline {content.name}",
            table=table,
            accept=accept,
            steps=content.steps,
            pictures=tuple(pictures),
            missing_pictures=tuple(missing),
            errors=content.true_errors,
            honest=content.honest,
            provenance=content.provenance,
            commands=content.commands,
        )
        return analysis.write_quality_page(path, page)
    except analysis.AnalysisError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True)
class _Sketch:
    """A picture that can be made: its words, and the function that makes the PNG and the caption."""

    title: str
    make: Callable[[], tuple[bytes, str]]


def gather_pictures(
    table: pd.DataFrame, outputs: Mapping[str, Places]
) -> tuple[list[analysis.QualityPicture], list[str]]:
    """Pictures of all steps whose outputs are there, in the order of `outputs`; and why others could not be made.

    table: as `analysis.check_quality_table` gives it.
    """
    pictures, missing = [], []
    for sketch in itertools.chain.from_iterable(_sketches(table, step, outputs) for step in outputs):
        try:
            png, caption = sketch.make()
        except Exception as error:  # whatever is wrong with an output, the page on it is wanted all the more
            missing.append(f"{sketch.title}: no picture ({error or type(error).__name__}).")
        else:
            pictures.append(analysis.QualityPicture(sketch.title, caption, png))
    return pictures, missing


def _sketches(table: pd.DataFrame, step: str, outputs: Mapping[str, Places]) -> Iterator[_Sketch]:
    places = outputs[step]
    if "output" not in places or not Path(places["output"]).is_dir():
        return
    match places["stage"]:
        case "montage":
            yield from _of_montage(table, step, places)
        case "alignment":
            yield from _of_alignment(step, places, outputs)
        case "masking":
            yield from _of_masking(table, step, places, outputs)


def _of_montage(table: pd.DataFrame, step: str, places: Places) -> Iterator[_Sketch]:
    sections = Path(places["output"]) / "sections"

    def make(number: int, what: str) -> tuple[bytes, str]:
        from apps.montage.picture import before_and_after

        drawn = before_and_after(sections / f"{number:05d}.json", Path(places["tiles"]), MONTAGE_PIXELS)
        return _png(drawn), f"{what} Left the tiles as the stage put them, right the section image of the same place."

    for number, what in _chosen(table, step, lambda number: (sections / f"{number:05d}.zarr").is_dir()):
        yield _Sketch(f"{step}, section {number}", functools.partial(make, number, what))


def _of_alignment(step: str, places: Places, outputs: Mapping[str, Places]) -> Iterator[_Sketch]:
    output = Path(places["output"])
    if not (output / "solution.json").is_file():
        return

    def make() -> tuple[bytes, str]:
        from apps.alignment.picture import draw

        montage = places.get("montage") or _place(outputs, "montage", "output")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cut.png"
            draw(Path(montage), output, file)
            return file.read_bytes(), (
                "The stack (of a long one the first sections) cut along z, sections downwards: left as they were "
                "imaged, right aligned. A black line is a section that is missing or held."
            )

    yield _Sketch(f"{step}, across the sections", make)


def _of_masking(table: pd.DataFrame, step: str, places: Places, outputs: Mapping[str, Places]) -> Iterator[_Sketch]:
    masks = Path(places.get("masks") or Path(places["output"]) / "masks.zarr")
    first = int(places.get("first_section") or 0)
    if not masks.is_dir():
        return

    def make(number: int, what: str) -> tuple[bytes, str]:
        from apps.masking.picture import mask_over_image

        image = places.get("image") or str(Path(_place(outputs, "alignment", "output")) / "aligned.zarr")
        return _png(mask_over_image(str(masks), image, number - first)), (
            f"{what} Left the aligned section, right with its mask: vessels red, cell bodies green, out of tissue blue."
        )

    for number, what in _chosen(table, step, lambda number: True):
        yield _Sketch(f"{step}, section {number}", functools.partial(make, number, what))


def _chosen(table: pd.DataFrame, step: str, has_image: Callable[[int], bool]) -> list[tuple[int, str]]:
    """Sections to show, with a sentence on why: an ordinary one, and the worst, those that are held first."""
    rows = table[(table["step"] == step) & table["state"].isin(("passed", "held", "accepted"))]
    states = {int(number): state for number, state in zip(rows["section"], rows["state"], strict=True)}
    told = analysis.worst_sections(table, step, len(states))
    ranked = [number for number in dict.fromkeys([*told, *sorted(states)]) if number in states and has_image(number)]
    worst = ranked[:WORST]
    rest = [number for number in ranked[WORST:] if states[number] == "passed"]
    chosen = [(rest[len(rest) // 2], "An ordinary section.")] if rest else []
    for number in worst:
        mine = table[(table["step"] == step) & (table["section"] == number)]
        reasons = analysis.hold_reasons(mine, ("held", "accepted"))["reason"]
        why = "; ".join(reasons) if len(reasons) else "among the worst" if rest else ""
        chosen.append((number, f"{states[number].capitalize()}{': ' if why else ''}{why}."))
    return chosen


def _place(outputs: Mapping[str, Places], stage: str, place: str) -> str:
    """The place of the only step with that stage.  Raises DataError where there is none, or more than one."""
    found = [places[place] for places in outputs.values() if places["stage"] == stage and place in places]
    if len(found) != 1:
        raise DataError(f"{len(found)} steps of stage {stage} with {place!r}; expected one, or the place to be given")
    return found[0]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
