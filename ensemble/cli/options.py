"""Options that several commands share, and the types they parse to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from apps.core.boxes import Box
from apps.core.errors import ParameterError

Command = Callable[..., Any]


class Numbers(click.ParamType):
    """Three numbers `Z,Y,X`."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = "Z,Y,X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3 or min(numbers) < 0:
            self.fail(
                f"{value!r}: expected three numbers Z,Y,X that are not negative, for example 64,64,64", param, ctx
            )
        return numbers


class BoxType(click.ParamType):
    """A box `z0:z1,y0:y1,x0:x1`."""

    name = "z0:z1,y0:y1,x0:x1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Box:
        if isinstance(value, Box):
            return value
        try:
            return Box.parse(value)
        except ParameterError as error:
            self.fail(str(error), param, ctx)


class MaskType(click.ParamType):
    """A mask `VOLUME` or `VOLUME=VALUE,...`, as MaskParameters."""

    name = "VOLUME[=VALUE,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from apps.ffn.masks import MaskParameters

        if isinstance(value, MaskParameters):
            return value
        volume, equals, values = value.rpartition("=")
        if not equals or "." in values:  # every volume's name has a suffix: this = is a part of it
            return MaskParameters(volume=value)
        try:
            numbers = tuple(int(part) for part in values.split(","))
        except ValueError:
            numbers = ()
        if not volume or not numbers:
            self.fail(f"{value!r}: expected a volume, and integers after its =, for example masks.zarr=1,2", param, ctx)
        return MaskParameters(volume=volume, values=numbers)


class Sections(click.ParamType):
    """Section numbers `7,9-12`."""

    name = "7,9-12"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers: set[int] = set()
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            try:
                ends = int(first), int(last if dash else first)
            except ValueError:
                ends = 0, -1
            if ends[1] < ends[0] or ends[0] < 0:
                self.fail(f"{part!r}: expected section numbers, for example 7,9-12", param, ctx)
            numbers.update(range(ends[0], ends[1] + 1))
        return tuple(sorted(numbers))


def home_option(command: Command) -> Command:
    """`--home`: the folder with the service's state, sites, campaigns and models; given to the command as a Path."""

    def resolve(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
        from ensemble.settings import default_home

        return value.expanduser().absolute() if value else default_home()

    return click.option(
        "--home",
        type=click.Path(path_type=Path),
        callback=resolve,
        help="Folder of the service's state, sites, campaigns and models.  "
        "[default: $ENSEMBLE_HOME, or the user's data folder]",
    )(command)


site_option = click.option("--site", "site_name", required=True, help="The Balsam site where the jobs run.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Jobs at a time (nodes)."
)
wall_time_option = click.option(
    "--wall-time",
    "wall_time_min",
    type=click.IntRange(min=3),
    default=120,
    show_default=True,
    help="Minutes that the launcher's allocation lasts.",
)
