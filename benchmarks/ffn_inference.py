"""Flood filling of one box: the faithful mode, the fast mode, and what google/ffn itself did.

With --mode one mode runs, on any image, labels and checkpoint:

    python -m benchmarks.ffn_inference --image FILE.h5:raw --labels FILE.h5:labels --checkpoint PREFIX \\
        --box 40:104,60:188,60:188 --mode fast

Without it both run in turn, several times, and are compared: time and accuracy on the box, accuracy on the boxes of
--more.  The peer is google/ffn, which spends all but a hundredth of its time in the network: its time here is the
number of its looks times what the bare network takes for one, measured in the same run.  --reference names an npz of
what google/ffn did on the box (seeds, looks, objects), to which the faithful mode is held.  Without --image the
benchmark makes a small phantom and a small network of its own, which shows that it works and no more.

Wall time is from the image in memory to the finished labels, seeds included; starting TensorFlow is not in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.progress import silent
from apps.core.volumes import Volume, open_volume, write_volume
from apps.evaluation.metrics import Scores, score
from apps.ffn.canvas import HostCanvas, Look, Thresholds
from apps.ffn.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint, save_checkpoint
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.hand_set import bright_is_object
from apps.ffn.model import ModelParameters
from apps.ffn.network import Network
from apps.ffn.seeds import find_seeds
from apps.ffn.segmenter import Segmentation, Segmenter
from apps.ffn.settings import InferenceSettings, Mode
from apps.inference.segment import inference_network, normalise, segment_with
from benchmarks.harness import Figure, benchmark_with_options, median, timed

# google/ffn on the box of the FIB-25 sample, two cores of its authors' choosing; ../shared/data/fib25/README.md.
GOOGLE_SECONDS = 163.0
BORDER = 16
MODES: tuple[Mode, ...] = ("faithful", "fast")


@dataclass(frozen=True)
class Case:
    """What to segment and with what."""

    image: Volume
    labels: Volume
    checkpoint: Checkpoint
    normalisation: tuple[float, float]
    settings: dict[Mode, InferenceSettings]
    threads: int


@dataclass(frozen=True)
class Run:
    """One segmentation and the seconds it took."""

    found: Segmentation
    seconds: float


class Engine:
    """The networks of both modes, started once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._networks: dict[Mode, Network] = {}

    def network(self, mode: Mode) -> Network:
        if mode not in self._networks:
            network = inference_network(self.case.checkpoint, self.case.settings[mode], self.case.threads)
            blank = np.zeros((1, *network.model.fov), np.float32)
            network.predictor()(blank, blank)
            self._networks[mode] = network
        return self._networks[mode]

    def segment(self, mode: Mode, box: Box) -> Run:
        network, case = self.network(mode), self.case
        begin = time.perf_counter()
        found = segment_with(network, case.image, box, case.normalisation, case.settings[mode], silent)
        return Run(found, time.perf_counter() - begin)

    def look_seconds(self, mode: Mode) -> float:
        """Median seconds of the bare network for one field of view."""
        predict = self.network(mode).predictor()
        rng = np.random.default_rng(0)
        image, seed = rng.normal(size=(2, 1, *self.case.checkpoint.model.fov)).astype(np.float32)
        predict(image, seed)
        return median(timed(lambda: predict(image, seed), 15))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", metavar="FILE", help="image: FILE.h5:DATASET or NAME.zarr")
    parser.add_argument("--labels", metavar="FILE", help="ground truth of the same shape")
    parser.add_argument("--checkpoint", metavar="PATH", help="google/ffn prefix, or checkpoint folder")
    parser.add_argument("--box", type=Box.parse, metavar="z0:z1,y0:y1,x0:x1", help="what to segment (default: all)")
    parser.add_argument("--more", type=Box.parse, nargs="*", default=[], metavar="BOX", help="further boxes to score")
    parser.add_argument("--mode", choices=MODES, help="run this mode only, once")
    parser.add_argument("--reference", type=Path, metavar="NPZ", help="what google/ffn did on the box")
    parser.add_argument("--image-mean", type=float, help="of a google/ffn checkpoint (FIB-25: 128)")
    parser.add_argument("--image-std", type=float, help="of a google/ffn checkpoint (FIB-25: 33)")
    parser.add_argument("--fovs", type=int, default=1, help="of one object at once, in the fast mode (default: 1)")
    parser.add_argument("--settings", type=Path, metavar="JSON", help="inference settings besides the mode")
    parser.add_argument("--runs", type=int, default=3, help="of each mode on the box (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="of the network (default: 2)")


def run(options: argparse.Namespace) -> list[Figure]:
    if options.image is None:
        with tempfile.TemporaryDirectory() as folder:
            engine = Engine(synthetic(Path(folder), options.threads, options.quick))
            figures = compare(engine, None, [], 1 if options.quick else 3, None)
            return [replace(figure, goal=None) for figure in figures]  # goals are for real data and networks
    for name in ("labels", "checkpoint"):
        if getattr(options, name) is None:
            raise SystemExit(f"--{name} is missing: --image, --labels and --checkpoint belong together")
    case = given(options)
    box = options.box or case.image.box
    if options.mode:
        return one_mode(Engine(case), options.mode, box)
    runs = 1 if options.quick else options.runs
    return compare(Engine(case), box, [] if options.quick else options.more, runs, options.reference)


def given(options: argparse.Namespace) -> Case:
    """The case of the command line; FIB-25's normalisation is taken where a google/ffn checkpoint holds none."""
    checkpoint = load_checkpoint(options.checkpoint)
    mean = 128.0 if options.image_mean is None and checkpoint.image_mean is None else options.image_mean
    std = 33.0 if options.image_std is None and checkpoint.image_std is None else options.image_std
    chosen = InferenceSettings.load(options.settings).to_dict() if options.settings else {}
    own: dict[Mode, dict[str, Any]] = {"faithful": {}, "fast": {"fovs_per_object": options.fovs}}
    settings = {mode: InferenceSettings.from_json({**chosen, "mode": mode, **own[mode]}) for mode in MODES}
    image, labels = open_volume(options.image), open_volume(options.labels)
    return Case(image, labels, checkpoint, checkpoint.normalisation(mean, std), settings, options.threads)


def synthetic(folder: Path, threads: int, quick: bool) -> Case:
    """Tubes between membranes, and a network set by hand that takes what is bright; with `quick` both are smaller."""
    rng = np.random.default_rng(0)
    tubes, depth, features = (2, 3, 8) if quick else (4, 4, 16)
    labels = np.zeros((40, 20 * tubes, 20 * tubes), np.uint32)
    for number, (y, x) in enumerate(np.ndindex(tubes, tubes), start=1):
        labels[:, 20 * y + 1 : 20 * y + 18, 20 * x + 1 : 20 * x + 18] = number
    image = np.where(labels > 0, 160, 60) + rng.normal(0, 8, labels.shape)
    write_volume(folder / "image.zarr", image.astype(np.uint8), (10.0, 10.0, 10.0))
    write_volume(folder / "labels.zarr", labels, (10.0, 10.0, 10.0))
    model = ModelParameters(depth=depth, features=features, fov=(17, 17, 17), deltas=(4, 4, 4))
    info = CheckpointInfo(model=model, image_mean=120.0, image_std=40.0, step=1, provenance={})
    save_checkpoint(folder / "checkpoint", info, bright_is_object(model), {})
    checkpoint = load_checkpoint(str(folder / "checkpoint"))
    settings = {mode: InferenceSettings(mode=mode, min_size=200, max_steps_per_cell=None) for mode in MODES}
    volumes = open_volume(str(folder / "image.zarr")), open_volume(str(folder / "labels.zarr"))
    return Case(*volumes, checkpoint, (120.0, 40.0), settings, threads)


def one_mode(engine: Engine, mode: Mode, box: Box) -> list[Figure]:
    done = engine.segment(mode, box)
    return [*cost_figures(mode, done, box), *score_figures(mode, engine.case.labels.read(box), done.found.labels)]


def cost_figures(mode: Mode, done: Run, box: Box) -> list[Figure]:
    counters = done.found.counters
    outside = done.seconds - counters.model_seconds
    return [
        Figure(f"{mode}: wall time", done.seconds, "s"),
        Figure(f"{mode}: looks of the network", counters.steps, "steps", note=f"{counters.wasted_steps} for no object"),
        Figure(f"{mode}: seconds in the model", counters.model_seconds, "s"),
        Figure(f"{mode}: seconds out of the model", outside, "s", note=f"seeds {counters.seed_seconds:.3f} s"),
        Figure(f"{mode}: share of the wall time out of the model", 100 * outside / done.seconds, "%", 3.0),
        Figure(f"{mode}: throughput", box.size / 1e6 / done.seconds * 3600, "Mvoxel/h"),
    ]


def score_figures(mode: str, truth: NDArray[Any], labels: NDArray[Any]) -> list[Figure]:
    """Against the labels: all voxels; the inner box, as the border cannot be filled; and where some object is."""
    figures = []
    for where, scores in scores_of(truth, labels).items():
        note = f"split {scores.vi_split:.3f} + merge {scores.vi_merge:.3f}"
        figures.append(Figure(f"{mode}: VI, {where}", scores.vi, "bit", note=note))
        figures.append(Figure(f"{mode}: adapted Rand error, {where}", scores.adapted_rand_error, ""))
    return figures


def scores_of(truth: NDArray[Any], labels: NDArray[Any]) -> dict[str, Scores]:
    found = {"all voxels": score(truth, labels)}
    inner = tuple(slice(BORDER, -BORDER) for _ in range(3))
    if truth[inner].any():
        found[f"{BORDER} voxels off the faces"] = score(truth[inner], labels[inner])
    if truth[labels > 0].any():
        found["filled voxels"] = score(np.where(labels > 0, truth, 0), labels)
    return found


def compare(engine: Engine, box: Box | None, more: list[Box], runs: int, reference: Path | None) -> list[Figure]:
    """Both modes in turn, `runs` times on the box and once on each of the others."""
    case = engine.case
    box = box or case.image.box
    done: dict[Mode, list[Run]] = {mode: [] for mode in MODES}
    looks: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    for _ in range(runs):
        for mode in MODES:
            looks[mode].append(engine.look_seconds(mode))
            done[mode].append(engine.segment(mode, box))
    typical = {mode: sorted(done[mode], key=lambda item: item.seconds)[runs // 2] for mode in MODES}
    figures = [figure for mode in MODES for figure in cost_figures(mode, typical[mode], box)]
    figures += speed_figures(typical, looks, real=reference is not None)
    if reference is not None:
        figures += fidelity_figures(engine, box, reference, typical["faithful"].found)
    truth = case.labels.read(box)
    for mode in MODES:
        figures += score_figures(mode, truth, typical[mode].found.labels)
        figures.append(repeat_figure(mode, done[mode]))
    figures += difference_figures(str(box), truth, *(typical[mode].found.labels for mode in MODES))
    for other in more:
        found = [engine.segment(mode, other).found.labels for mode in MODES]
        figures += difference_figures(str(other), case.labels.read(other), *found)
    return figures


def speed_figures(typical: dict[Mode, Run], looks: dict[Mode, list[float]], real: bool) -> list[Figure]:
    """`real`: on the box that google/ffn's own time is known for."""
    faithful, fast = typical["faithful"], typical["fast"]
    floor = faithful.found.counters.steps * median(looks["faithful"])
    figures = [
        Figure(
            "fast: times as fast as faithful", faithful.seconds / fast.seconds, "x", 3.0, "higher", "of the wall time"
        ),
        Figure("faithful: bare network, one field of view", 1e3 * median(looks["faithful"]), "ms"),
        Figure("fast: bare network, one field of view", 1e3 * median(looks["fast"]), "ms"),
        Figure(
            "faithful: wall time over that of the bare network for as many looks",
            faithful.seconds / floor,
            "x",
            1.03,
            note="google/ffn: 1.01, measured by others on another machine",
        ),
    ]
    if real:
        note = "google/ffn on this box and checkpoint: 163 s and 150 s, measured by others on another machine"
        figures.append(Figure("faithful: wall time", faithful.seconds, "s", GOOGLE_SECONDS, note=note))
    return figures


def repeat_figure(mode: Mode, done: list[Run]) -> Figure:
    different = sum(not np.array_equal(item.found.labels, done[0].found.labels) for item in done[1:])
    return Figure(f"{mode}: runs that gave other labels than the first", different, "runs", 0)


def difference_figures(box: str, truth: NDArray[Any], faithful: NDArray[Any], fast: NDArray[Any]) -> list[Figure]:
    """How much worse than the faithful mode the fast mode is; negative where it is better."""
    figures = []
    both = zip(scores_of(truth, faithful).items(), scores_of(truth, fast).values(), strict=True)
    for (where, before), after in both:
        rand = after.adapted_rand_error - before.adapted_rand_error
        note = f"{before.vi:.3f} to {after.vi:.3f}"
        figures.append(Figure(f"fast - faithful: VI, {where}, {box}", after.vi - before.vi, "bit", 0.05, note=note))
        note = f"{before.adapted_rand_error:.4f} to {after.adapted_rand_error:.4f}"
        figures.append(Figure(f"fast - faithful: adapted Rand error, {where}, {box}", rand, "", 0.01, note=note))
    return figures


def fidelity_figures(engine: Engine, box: Box, reference: Path, found: Segmentation) -> list[Figure]:
    """The faithful mode beside what google/ffn did; see ../shared/data/fib25/README.md for the file."""
    with np.load(reference, allow_pickle=False) as file:
        theirs: dict[str, NDArray[Any]] = {
            name: file[name] for name in ("segmentation", "seeds_zyx", "fov_positions_zyx", "origins")
        }
    seeds, positions, again = recorded(engine, box)
    assert np.array_equal(again.labels, found.labels)
    steps = len(theirs["fov_positions_zyx"])
    objects = [(item.id, *item.origin, item.steps) for item in found.objects]
    labels = theirs["segmentation"].astype(np.uint32)
    everything = score(labels + 1, found.labels + 1)
    return [
        Figure(
            "faithful: seeds as google/ffn's, in order", 100 * agreement(seeds, theirs["seeds_zyx"]), "%", 100, "higher"
        ),
        Figure(
            "faithful: looks at the positions of google/ffn's, in order",
            100 * agreement(positions, theirs["fov_positions_zyx"]),
            "%",
        ),
        Figure("faithful: looks more or fewer than google/ffn's", 100 * abs(len(positions) - steps) / steps, "%", 1.0),
        Figure(
            "faithful: objects (origin, looks) as google/ffn's, in order",
            100 * agreement(np.array(objects), theirs["origins"]),
            "%",
        ),
        Figure("faithful: VI to google/ffn's segmentation, all voxels", everything.vi, "bit", 0.01),
        Figure(
            "faithful: voxels labelled otherwise than google/ffn's",
            int(np.count_nonzero(labels != found.labels)),
            "voxels",
        ),
    ]


def agreement(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Share of the longer list's rows that are equal in both, place by place."""
    common = min(len(ours), len(theirs))
    return float((ours[:common] == theirs[:common]).all(axis=1).sum() / max(len(ours), len(theirs)))


def recorded(engine: Engine, box: Box) -> tuple[NDArray[np.int64], NDArray[np.int64], Segmentation]:
    """Seeds [n, 3] and looks [n, 3] zyx of the faithful mode, and what came of them."""
    case = engine.case
    positions: list[Triple] = []
    network, settings = engine.network("faithful"), engine.case.settings["faithful"]

    class Recording(HostCanvas):
        def launch(self, looks: Any) -> None:
            asked: list[Look] = list(looks)
            super().launch(asked)
            positions.extend(look.position for look, view in zip(asked, self._done[-1], strict=True) if view.valid)

    image = normalise(case.image.read(box), case.normalisation)
    seeds = find_seeds(settings.seed_policy, image, case.image.voxel_size_nm or (1.0, 1.0, 1.0), network.model.margin)
    segmenter = Segmenter(box.shape, seeds, network.model, settings)
    canvas = Recording(network.model, network.predictor(), Thresholds.of(settings))
    flood(iter([Subvolume(0, image, segmenter)]), canvas, lambda done: None)
    return seeds, np.array(positions), segmenter.result()


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.ffn_inference", __doc__, run, add_options))
