"""What a pipeline is: named steps, each a stage with its parameters, its grain and its gate; from YAML or from Python.

    name: block-7
    steps:
      montage:
        stage: montage
        parameters: {tiles: ./tiles.csv, voxel_size_nm: [40, 8, 8]}
        gate: {overlap_correlation: 0.4, tiles_connected: 1.0}
      alignment:
        stage: alignment
        parameters: {montage: "${montage.output}"}

`${step.name}` stands for what an earlier step gives: a field of its result, or a place that it writes.  A text that
begins with ./ or ../ is a path from the pipeline's own folder.  A step waits for those that it names.  Where a step
floods, `model` may be the name of a registered model (registered.py).

A YAML file may have `vars` too: values with anchors (&) that the steps repeat (*), so that they are said in one place.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from apps.core import quality
from apps.core.errors import DataError, EnsembleError, ParameterError
from apps.core.parameters import Parameters
from apps.core.stage import load_stage
from apps.core.suggestions import did_you_mean
from ensemble.campaigns import check_name
from ensemble.pipeline.references import named_steps, with_paths
from ensemble.pipeline.registered import is_model_name, with_registered_model
from ensemble.settings import default_home

STEP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
# Parameters of stages that name files and folders: jobs run elsewhere, so a path has to say where it counts from.
PATHS = (
    *("tiles", "montage", "alignment", "masking", "phantom", "image", "labels", "model", "volume", "output"),
    *("segmentation", "pieces", "synapses", "true_synapses", "clefts", "vesicles", "skeletons", "objects"),
    *("coordinates", "init", "first", "second"),
)

DEFAULT_GATE: Literal["default"] = "default"
NO_GATE: Literal["none"] = "none"


class Step(Parameters, frozen=True, kw_only=True):
    """One step of a pipeline."""

    stage: Annotated[str, Meta(description="a stage's name: `python -m apps.<stage> --help` lists its parameters")]
    parameters: Annotated[dict[str, Any], Meta(description="the stage's parameters; `output` may be left out")] = (
        msgspec.field(default_factory=dict)
    )
    after: Annotated[tuple[str, ...], Meta(description="further steps to wait for, that no parameter names")] = ()
    grain: Annotated[int, Meta(ge=1, description="sections that one job does, where the stage works by sections")] = 1
    parts: Annotated[
        int, Meta(ge=1, description="jobs that share the step, where the stage works by subvolumes, chunks or objects")
    ] = 1
    groups: Annotated[int, Meta(ge=1, description="groups of chunks that one rendering job of an alignment does")] = 4
    gate: Annotated[
        dict[str, float] | Literal["default", "none"],
        Meta(description="measure -> worst value that passes; default: what the stage suggests; none"),
    ] = DEFAULT_GATE
    on_held: Annotated[
        Literal["continue", "wait"],
        Meta(description="what later steps do while sections are held: go on with the others, or wait"),
    ] = "continue"
    num_nodes: Annotated[int, Meta(ge=1, description="nodes of each job")] = 1
    ranks_per_node: Annotated[int, Meta(ge=1, description="ranks a node of each job")] = 1
    wall_time_min: Annotated[int, Meta(ge=0, description="estimate for one job in minutes; 0: none")] = 0
    time_limit_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="a job that takes longer is ended, as hung")
    ] = None

    def thresholds(self) -> dict[str, float]:
        """Measure -> worst value that passes; empty where there is no gate."""
        if isinstance(self.gate, dict):
            return self.gate
        if self.gate == NO_GATE or self.stage not in quality.MODULES:
            return {}
        return dict(quality.load_quality(self.stage).default_gate)


class Pipeline(Parameters, frozen=True, kw_only=True):
    """Steps in an order in which each names earlier ones only."""

    name: Annotated[str, Meta(description="of the campaign, and of the folder of its results")]
    steps: Annotated[dict[str, Step], Meta(min_length=1, description="name -> step")]

    def check(self) -> None:
        check_name(self.name, "pipeline")
        earlier: list[str] = []
        outputs: dict[str, str] = {}
        for name, step in self.steps.items():
            if not STEP_NAME.fullmatch(name):
                raise ParameterError(f"step {name!r}: expected a name of letters, digits, _ and - (at most 64)")
            written = step.parameters.get("output", f"OUT/{name}")
            written = os.path.normpath(written) if isinstance(written, str) else f"{written}"
            if written in outputs:
                raise ParameterError(f"step {name}: has the output {written} of step {outputs[written]}; give its own")
            outputs[written] = name
            for other in self.needs(name):
                if other not in earlier:
                    raise ParameterError(f"step {name}: {self._why_not(name, other, earlier)}")
            _check_step(name, step)
            earlier.append(name)

    def _why_not(self, name: str, other: str, earlier: list[str]) -> str:
        """Why a step cannot name another one that is not earlier."""
        known = f"the steps before it are: {', '.join(earlier) or 'none'}"
        if other == name:
            return f"names itself; {known}"
        if other not in self.steps:
            return f"names the step {other!r}{did_you_mean(other, self.steps)}, which there is not; {known}"
        circle = self._way(other, name, set())
        if circle:
            return f"names the step {other!r}; steps go in a circle: {' waits for '.join([name, *circle])}"
        return f"names the step {other!r}; that comes after it: put it before; {known}"

    def _way(self, start: str, end: str, seen: set[str]) -> list[str]:
        """Steps from `start` to `end`, each waiting for the next; empty where `start` does not wait for `end`.

        `seen`: steps that have been tried, none of which is tried again.
        """
        if start == end:
            return [end]
        seen.add(start)
        for other in self.needs(start):
            if other in self.steps and other not in seen and (way := self._way(other, end, seen)):
                return [start, *way]
        return []

    def needs(self, name: str) -> tuple[str, ...]:
        """The steps that a step waits for, in the order in which it names them."""
        step = self.steps[name]
        try:
            return tuple(dict.fromkeys([*named_steps(step.parameters), *step.after]))
        except ParameterError as error:
            raise ParameterError(f"step {name}: {error}") from error


def load_pipeline(path: str | Path, home: Path | None = None) -> tuple[Pipeline, Path]:
    """The pipeline of a YAML file, or of a Python file that defines `pipeline`; and the folder that paths count from.

    The name is the file's where it gives none.  `home`: whose registered models it may name; the usual one by default.
    Raises DataError where the file is missing or cannot be read, ParameterError where it describes no pipeline, or
    names a model that is not registered.
    """
    file = Path(path).absolute()
    if not file.is_file():
        raise DataError(f"{path}: no such pipeline file; expected YAML, or Python that defines `pipeline`")
    found = _from_python(file) if file.suffix == ".py" else _from_yaml(file)
    registry = default_home() if home is None else home
    steps = {name: _placed(name, step, file.parent, registry) for name, step in found.steps.items()}
    return Pipeline(name=found.name, steps=steps), file.parent


def _placed(name: str, step: Step, folder: Path, home: Path) -> Step:
    """The step with paths from the root of the file system, and a checkpoint's for the name of a model."""
    try:
        parameters = with_registered_model(step.stage, with_paths(step.parameters, folder), home)
    except EnsembleError as error:
        raise ParameterError(f"step {name}: {error}") from error
    return Step(**{**vars_of(step), "parameters": parameters})


def vars_of(step: Step) -> dict[str, Any]:
    """Field -> value of a step."""
    return {name: getattr(step, name) for name in step.__struct_fields__}


def _from_yaml(file: Path) -> Pipeline:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{file}: expected `name` and `steps`; see docs/workflow.md")
    steps = content.get("steps")
    if not isinstance(steps, dict):
        raise ParameterError(f"{file}: expected `steps`, name -> step; see docs/workflow.md")
    for name, step in steps.items():
        if not isinstance(step, dict):
            raise ParameterError(f"{file}: step {name}: expected `stage` and `parameters`, not {step!r}")
    made = {f"{name}": Step.from_json(step, where=f"{file}: step {name}") for name, step in steps.items()}
    rest = {key: value for key, value in content.items() if key not in ("name", "vars", "steps")}
    if rest:
        raise ParameterError(
            f"{file}: unknown field {', '.join(map(str, rest))}; a pipeline has `name`, `vars` and `steps`"
        )
    return Pipeline(name=content.get("name", file.stem), steps=made)


def _from_python(file: Path) -> Pipeline:
    spec = importlib.util.spec_from_file_location(f"ensemble_pipeline_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except EnsembleError:
        raise
    except Exception as error:
        raise DataError(f"{file}: cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, "pipeline", None)
    if not isinstance(found, Pipeline):
        raise ParameterError(f"{file}: defines no pipeline; expected `pipeline = Pipeline(name=..., steps=...)`")
    return found


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key given twice, of which YAML would silently drop the first."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Looked at before `<<` puts in the keys of another mapping, which are there to be replaced."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, Any]] = set()
        for key, _ in node.value:
            name = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key))
            if name in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(name)
        return node


def _check_step(name: str, step: Step) -> None:
    """What can be known to be wrong before any job: the stage, names and types of parameters, measures of the gate."""
    try:
        stage = load_stage(step.stage)
        stage.check_installed()
        _check_paths(step)
        always = {"output"} & set(stage.parameters.__struct_fields__)  # the pipeline gives it
        stage.parameters.check_names(always | step.parameters.keys())
        stage.parameters.check_fields({key: value for key, value in step.parameters.items() if not named_steps(value)})
        if not named_steps(step.parameters):
            given = dict(step.parameters)
            if "output" in stage.parameters.__struct_fields__:
                given.setdefault("output", f"output{stage.output_suffix}")
            stage.parameters.from_json(given, where="parameters")
        if isinstance(step.gate, dict):
            for measure in step.gate:
                quality.load_quality(step.stage).measure(measure)
    except EnsembleError as error:
        raise ParameterError(f"step {name}: {error}") from error


def _check_paths(step: Step) -> None:
    for where, name, value in paths_of(step.parameters):
        if value.startswith(("/", "./", "../")):
            continue
        if name == "output" and named_steps(value):
            raise ParameterError(f"{where} {value}: expected a place of its own, and no reference; or leave it out")
        if not value.startswith("${") and not is_model_name(step.stage, where, value):
            raise ParameterError(f"{where} {value!r}: begin it with ./ (from the pipeline's folder) or with /")


def paths_of(parameters: Any, where: str = "") -> Iterator[tuple[str, str, str]]:
    """(where it stands, as `volumes.0.image`, the parameter's name, its text) of all that names a file or a folder."""
    items = parameters.items() if isinstance(parameters, dict) else enumerate(parameters)
    for key, value in items:
        place = f"{where}.{key}" if where else f"{key}"
        if isinstance(value, dict | list | tuple):
            yield from paths_of(value, place)
        elif isinstance(value, str) and key in PATHS:
            yield place, key, value
