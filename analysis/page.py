"""What the pages share: templates that stand beside this file, and a file that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError


def render_page(template: str, **values: Any) -> str:
    """The template's HTML text; text among the values is escaped.

    Those that extend `page.html.j2` take `content` (title, honest, commands, provenance) and `headline`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def save_page(path: str | Path, text: str) -> Path:
    """Write the text to `path`, under a temporary name first; returns the path.

    Raises AnalysisError where the file cannot be written; what was there before is then as it was.
    """
    target = Path(path)
    try:
        descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise AnalysisError(
            f"{target}: cannot be written ({error.strerror or error}); give a writable place"
        ) from error
    return target
