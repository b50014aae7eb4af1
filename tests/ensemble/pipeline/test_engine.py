"""A pipeline on real stages, from tiles to an aligned volume: what is done, what is done again, what is held."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import DataError, ParameterError, TransientError
from apps.core.volumes import content_hash, open_volume
from ensemble.jobs import Outcome, Task
from ensemble.pipeline import gates
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.engine import Engine, Look
from tests.ensemble.pipeline.in_process import QueueJobs, StageJobs
from tests.ensemble.pipeline.microscope import ALIGNMENT, MONTAGE, acquire, list_sections, spoil, tiles_of

SECTIONS = 6


@pytest.fixture(scope="module")
def microscope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return acquire(tmp_path_factory.mktemp("microscope"))


@pytest.fixture
def tiles(microscope: Path, tmp_path: Path) -> Path:
    """The tiles of one's own; the table lists the first SECTIONS sections."""
    folder = tmp_path / "tiles"
    shutil.copytree(microscope.parent / "tiles", folder / "tiles")
    for file in (folder / "tiles").rglob("*.tif"):
        os.utime(file, (0, 0))  # written long ago
    list_sections(microscope, folder / "tiles.csv", SECTIONS)
    return folder / "tiles.csv"


def pipeline(tiles: Path, montage: dict[str, Any] | None = None, alignment: dict[str, Any] | None = None) -> Pipeline:
    own = {"tiles": str(tiles), **MONTAGE}
    aligning = {"montage": "${montage.output}", **ALIGNMENT}
    return Pipeline.from_json(
        {
            "name": "small",
            "steps": {
                "montage": {"stage": "montage", "parameters": own, **(montage or {})},
                "alignment": {"stage": "alignment", "parameters": aligning, "groups": 1, **(alignment or {})},
            },
        }
    )


def run(pipeline: Pipeline, folder: Path, jobs: StageJobs) -> Look:
    folder.mkdir(exist_ok=True)
    return Engine(pipeline, folder, jobs).run()


def units(step: str, *names: str) -> list[str]:
    return [f"{step}/{name}" for name in names]


MATCHES = [f"match-{n:05d}" for n in range(SECTIONS)]


def test_every_section_is_a_job_and_what_is_done_is_not_done_again(tiles: Path, tmp_path: Path) -> None:
    jobs = StageJobs()
    look = run(pipeline(tiles), tmp_path / "out", jobs)
    assert look.settled and not look.running
    done = jobs.take()
    assert [unit for unit in done if unit.startswith("montage/")] == units(
        "montage", *(f"{n:05d}" for n in range(SECTIONS))
    )
    renders = [f"render-{n:06d}" for n in range(SECTIONS // 2)]
    assert [unit for unit in done if unit.startswith("alignment/")] == units(
        "alignment", *MATCHES, "solve", *renders, "score"
    )
    assert {status.state for plan in look.plans.values() for status in plan.sections.values()} == {"passed"}
    assert open_volume(look.plans["alignment"].values["aligned"]).shape[0] == SECTIONS
    solve = next(task for key, task in jobs.tasks.items() if "/solve" in key)
    assert len(solve.after) == SECTIONS and solve.tags == {"step": "alignment"}

    again = run(pipeline(tiles), tmp_path / "out", jobs)
    assert again.settled and jobs.take() == []


def test_a_section_that_was_acquired_adds_only_its_own_jobs(tiles: Path, microscope: Path, tmp_path: Path) -> None:
    jobs, out = StageJobs(), tmp_path / "out"
    first = pipeline(tiles)
    solving = {"window": 4, "overlap": 2}
    short = pipeline(tiles, alignment={"parameters": {**first.steps["alignment"].parameters, "solving": solving}})
    list_sections(microscope, tiles, 9)
    run(short, out, jobs)
    jobs.take()
    list_sections(microscope, tiles, 10)
    assert run(short, out, jobs).settled
    # Of the nine sections before, only the planes of the last window are drawn again.
    own = ["match-00009", "solve", "render-000003", "render-000004", "score"]
    assert jobs.take() == [*units("montage", "00009"), *units("alignment", *own)]


def test_same_bytes_however_the_work_is_divided(tiles: Path, tmp_path: Path) -> None:
    one = run(pipeline(tiles), tmp_path / "one", StageJobs())
    other = run(pipeline(tiles, {"grain": 4}, {"grain": 3, "groups": 2}), tmp_path / "other", StageJobs())
    volumes = [open_volume(look.plans["alignment"].values["aligned"]) for look in (one, other)]
    assert content_hash(volumes[0]) == content_hash(volumes[1])


def test_a_driver_that_comes_after_one_that_died_goes_on(tiles: Path, tmp_path: Path) -> None:
    class DriverKilledError(BaseException):
        pass

    def die(task: Task) -> None:
        if task.key.startswith("alignment/match-00003"):
            raise DriverKilledError

    jobs = StageJobs(die)
    with pytest.raises(DriverKilledError):
        run(pipeline(tiles), tmp_path / "out", jobs)
    first = jobs.take()
    jobs._before = lambda task: None
    look = run(pipeline(tiles), tmp_path / "out", jobs)
    second = jobs.take()
    assert look.settled
    assert set(first) & set(second) == {"alignment/match-00003"}
    reference = run(pipeline(tiles), tmp_path / "reference", StageJobs())
    found = [open_volume(each.plans["alignment"].values["aligned"]) for each in (look, reference)]
    assert content_hash(found[0]) == content_hash(found[1])


def test_a_result_that_is_gone_is_made_again(tiles: Path, tmp_path: Path) -> None:
    jobs = StageJobs()
    look = run(pipeline(tiles), tmp_path / "out", jobs)
    jobs.take()
    (tmp_path / "out" / "montage" / "sections" / "00002.json").unlink()
    Path(look.plans["alignment"].values["report"]).unlink()
    assert run(pipeline(tiles), tmp_path / "out", jobs).settled
    assert jobs.take() == [*units("montage", "00002"), *units("alignment", "score")]


def test_parameters_that_change_and_change_back_are_not_taken_for_done(tiles: Path, tmp_path: Path) -> None:
    jobs = StageJobs()
    first = pipeline(tiles)
    changed = pipeline(tiles, {"parameters": {**first.steps["montage"].parameters, "blend": 8}})
    look = run(first, tmp_path / "out", jobs)
    before = content_hash(open_volume(look.plans["alignment"].values["aligned"]))
    jobs.take()
    look = run(changed, tmp_path / "out", jobs)
    assert content_hash(open_volume(look.plans["alignment"].values["aligned"])) != before
    assert units("montage", "00000")[0] in jobs.take()
    look = run(first, tmp_path / "out", jobs)
    assert units("montage", "00000")[0] in jobs.take()
    assert content_hash(open_volume(look.plans["alignment"].values["aligned"])) == before


def test_a_held_section_is_left_out_until_it_is_accepted(tiles: Path, tmp_path: Path) -> None:
    spoil(tiles, 2)
    gated = pipeline(tiles, {"gate": {"overlap_correlation": 0.6}}, {"gate": "none"})
    jobs, out = StageJobs(), tmp_path / "out"
    look = run(gated, out, jobs)
    montage, alignment = look.plans["montage"], look.plans["alignment"]
    assert montage.held == [2] and montage.settled and alignment.settled
    (miss,) = montage.sections[2].missed
    assert miss.measure == "overlap_correlation" and miss.value < 0.6 == miss.threshold
    assert alignment.sections[2].state == "absent"
    assert not open_volume(alignment.values["aligned"]).read()[2].any()
    assert "alignment/match-00002" not in jobs.take()

    gates.accept(out, "montage", {2: [miss]}, "looked at")
    look = run(gated, out, jobs)
    assert look.plans["montage"].sections[2].state == "accepted" and look.settled
    assert open_volume(look.plans["alignment"].values["aligned"]).read()[2].any()
    done = jobs.take()
    assert "alignment/match-00002" in done and not any(unit.startswith("montage/") for unit in done)

    gates.revoke(out, "montage", [2])
    assert run(gated, out, jobs).plans["montage"].held == [2]


def test_later_steps_wait_where_the_step_says_so(tiles: Path, tmp_path: Path) -> None:
    spoil(tiles, 2)
    jobs = StageJobs()
    gated = pipeline(tiles, {"gate": {"overlap_correlation": 0.6}, "on_held": "wait"})
    look = run(gated, tmp_path / "out", jobs)
    assert look.plans["montage"].held == [2] and not look.plans["alignment"].settled
    assert [unit for unit in jobs.take() if unit.startswith("alignment/")] == units("alignment", *MATCHES[:2])


def test_a_gate_that_is_opened_while_the_pipeline_runs_is_seen(tiles: Path, tmp_path: Path) -> None:
    spoil(tiles, 2)
    out = tmp_path / "out"
    out.mkdir()
    gated = pipeline(tiles, {"gate": {"overlap_correlation": 0.6}, "on_held": "wait"})
    engine, looks = Engine(gated, out, StageJobs(), follow=True), []

    def see(look: Look) -> None:
        looks.append(look)
        held = look.plans["montage"].held
        if held and not look.running:
            gates.accept(out, "montage", {n: look.plans["montage"].sections[n].missed for n in held}, "")

    last = engine.run(see, next_look_s=60.0, stop=lambda: bool(looks) and looks[-1].settled)
    assert last.plans["montage"].sections[2].state == "accepted" and last.settled


def test_a_job_that_failed_is_named_and_tried_again_by_the_next_run(tiles: Path, tmp_path: Path) -> None:
    def break_it(task: Task) -> None:
        if task.key.startswith("montage/00004"):
            raise TransientError("the node was lost")

    jobs, out = StageJobs(break_it), tmp_path / "out"
    look = run(pipeline(tiles), out, jobs)
    assert [outcome.message for outcome in look.failed("montage")] == ["the node was lost"]
    assert look.plans["montage"].sections[4].state == "failed"
    assert look.plans["alignment"].sections[4].state == "absent"
    assert jobs.take().count("montage/00004") == 1
    jobs._before = lambda task: None
    look = run(pipeline(tiles), out, jobs)
    assert look.settled and not look.failed("montage")
    assert look.plans["alignment"].sections[4].state == "passed"


def test_a_failure_in_a_step_that_all_need_stops_what_comes_after(tiles: Path, tmp_path: Path) -> None:
    def break_it(task: Task) -> None:
        if "/solve" in task.key:
            raise TransientError("the node was lost")

    look = run(pipeline(tiles), tmp_path / "out", StageJobs(break_it))
    assert not look.plans["alignment"].settled and len(look.failed("alignment")) == 1


def test_sections_still_being_acquired_are_left_for_later(tiles: Path, tmp_path: Path) -> None:
    missing = tiles_of(tiles, 5)[0]
    kept = missing.read_bytes()
    missing.unlink()
    jobs, out = StageJobs(), tmp_path / "out"
    out.mkdir()
    engine, looks = Engine(pipeline(tiles), out, jobs, follow=True), []

    def see(look: Look) -> None:
        looks.append(look)
        if not look.running and not missing.exists():
            assert "montage/00005" not in [key.rpartition("-")[0] for key in jobs.submitted]
            missing.write_bytes(kept)

    def done() -> bool:
        return bool(looks) and looks[-1].settled and looks[-1].plans["montage"].sections[5].state == "passed"

    last = engine.run(see, next_look_s=0.01, stop=done)
    before = next(look for look in looks if look.settled)
    assert before.plans["montage"].sections[5].reasons == ("1 of its tiles are not there yet, or are being written",)
    assert before.plans["alignment"].sections[4].state == "passed", "the others did not wait for it"
    assert last.plans["alignment"].sections[5].state == "passed"


def test_a_section_that_does_not_come_is_absent_once_a_later_one_is_there(tiles: Path, tmp_path: Path) -> None:
    for file in tiles_of(tiles, 2):
        file.unlink()
    looks: list[Look] = []
    (tmp_path / "out").mkdir()
    engine = Engine(pipeline(tiles), tmp_path / "out", StageJobs(), follow=True)
    last = engine.run(looks.append, next_look_s=0.01, stop=lambda: bool(looks) and looks[-1].settled)
    assert last.plans["montage"].sections[2].state == "absent"
    assert "tiles are not there yet" in last.plans["montage"].sections[2].reasons[0]
    assert last.plans["alignment"].sections[5].state == "passed"


def test_a_tile_that_is_being_written_is_not_taken(tiles: Path, tmp_path: Path) -> None:
    growing = tiles_of(tiles, 5)[0]
    whole = growing.read_bytes()
    growing.write_bytes(whole[: len(whole) // 2])
    jobs, looks = StageJobs(), list[Look]()

    def see(look: Look) -> None:
        looks.append(look)
        growing.write_bytes(whole)  # the file is complete, and not touched again, from the second look on

    (tmp_path / "out").mkdir()
    engine = Engine(pipeline(tiles), tmp_path / "out", jobs, follow=True)
    engine.run(lambda look: see(look) if len(looks) < 2 else looks.append(look), 0.01, lambda: len(looks) > 9)
    assert [key.rpartition("-")[0] for key in jobs.submitted].count("montage/00005") == 1
    assert (
        looks[-1].plans["montage"].sections[5].state == "passed" and not looks[-1].plans["montage"].sections[5].reasons
    )


def test_a_killed_drivers_jobs_are_taken_back_where_the_parameters_have_changed(tiles: Path, tmp_path: Path) -> None:
    first, out, jobs = pipeline(tiles), tmp_path / "out", QueueJobs()
    out.mkdir()
    changed = pipeline(tiles, {"parameters": {**first.steps["montage"].parameters, "blend": 8}})
    old = Engine(changed, out, jobs)
    old._go_on(old.look())  # and is killed
    jobs.start(2)
    queued = set(jobs.queue)
    engine = Engine(first, out, jobs)
    look = engine._go_on(engine.look())
    assert jobs.withdrawn == queued, "what has not started is taken back"
    assert not set(jobs.queue), "and nothing is put beside what runs"
    jobs.finish()
    while not look.settled:
        look = engine._go_on(engine.look())
        jobs.start(100)
        jobs.finish()
    reference = run(first, tmp_path / "reference", StageJobs())
    found = [open_volume(each.plans["alignment"].values["aligned"]) for each in (look, reference)]
    assert content_hash(found[0]) == content_hash(found[1])


def test_another_grain_and_back_is_not_taken_for_done(tiles: Path, tmp_path: Path) -> None:
    jobs, out, first = StageJobs(), tmp_path / "out", pipeline(tiles)
    other = {"parameters": {**first.steps["montage"].parameters, "blend": 8}, "grain": 4}
    before = content_hash(open_volume(run(first, out, jobs).plans["alignment"].values["aligned"]))
    stiff = {
        "parameters": {**first.steps["alignment"].parameters, "solving": {"stiffness": 2.0}},
        "grain": 3,
        "groups": 2,
    }
    assert run(pipeline(tiles, other, stiff), out, jobs).settled
    look = run(first, out, jobs)
    assert look.settled and content_hash(open_volume(look.plans["alignment"].values["aligned"])) == before


def test_results_that_are_damaged_or_gone_are_made_again(tiles: Path, tmp_path: Path) -> None:
    jobs, out = StageJobs(), tmp_path / "out"
    run(pipeline(tiles), out, jobs)
    jobs.take()
    (out / "montage" / "sections" / "00001.json").write_text('{"section": ')
    shutil.rmtree(out / "montage" / "sections" / "00002.zarr")
    (out / "alignment" / "alignment.json").write_text("{")
    look = run(pipeline(tiles), out, jobs)
    assert look.settled and not look.broken
    assert jobs.take() == [*units("montage", "00001", "00002"), *units("alignment", "score")]
    assert {status.state for status in look.plans["alignment"].sections.values()} == {"passed"}


def test_a_job_that_ends_well_without_its_output_is_a_failure(tiles: Path, tmp_path: Path) -> None:
    class Forgetful(StageJobs):
        def _do(self, task: Task) -> Outcome:
            outcome = super()._do(task)
            if task.key.startswith("montage/00003"):
                Path(task.outputs[0]).unlink()
            return outcome

    jobs = Forgetful()
    look = run(pipeline(tiles), tmp_path / "out", jobs)
    (failed,) = look.failed("montage")
    assert "00003.json is not there" in failed.message and jobs.take().count("montage/00003") == 2


def test_a_single_step_goes_on_after_a_montage_of_which_a_job_failed(microscope: Path, tmp_path: Path) -> None:
    def break_it(task: Task) -> None:
        if task.key.startswith("montage/00015"):  # the last one
            raise TransientError("the node was lost")

    folder = microscope.parent
    places = {"phantom": str(folder), "montage": "${montage.output}"}
    steps = {
        "montage": {"stage": "montage", "parameters": {"tiles": str(microscope), **MONTAGE}},
        "audit": {"stage": "audit", "parameters": places},
    }
    audited = Pipeline.from_json({"name": "small", "steps": steps})
    look = run(audited, tmp_path / "out", StageJobs(break_it))  # which refuses parents that failed
    assert look.plans["audit"].settled and len(look.failed("montage")) == 1


def test_while_its_tissue_is_made_anew_old_sections_are_not_aligned(tmp_path: Path) -> None:
    def of_seed(seed: int) -> Pipeline:
        motion = {"translation": 2, "rotation_deg": 0.5, "deformation": 0.5, "margin": 8}
        tissue = {
            "shape": [16, 128, 192],
            "seed": seed,
            "design": {"noise": 0},
            "acquisition": {"grid": [1, 2], "overlap": 0.3, "jitter": 3, **motion},
        }
        steps = {
            "tissue": {"stage": "phantom", "parameters": tissue},
            "montage": {"stage": "montage", "parameters": {"tiles": "${tissue.tile_table}", **MONTAGE}, "gate": "none"},
            "alignment": {"stage": "alignment", "parameters": {"montage": "${montage.output}", **ALIGNMENT}},
        }
        return Pipeline.from_json({"name": "small", "steps": steps})

    jobs, out = StageJobs(), tmp_path / "out"
    first = of_seed(3)
    run(Pipeline(name="small", steps={name: first.steps[name] for name in ("tissue", "montage")}), out, jobs)
    look = Engine(of_seed(4), out, jobs).look()
    assert [len(plan.tasks) for plan in look.plans.values()] == [1, 0, 0]


def test_what_is_revoked_while_the_pipeline_runs_is_held_again(tiles: Path, tmp_path: Path) -> None:
    spoil(tiles, 2)
    out = tmp_path / "out"
    out.mkdir()
    gated = pipeline(tiles, {"gate": {"overlap_correlation": 0.6}}, {"gate": "none"})
    engine, states = Engine(gated, out, StageJobs(), follow=True), list[str]()

    def see(look: Look) -> None:
        state = look.plans["montage"].sections[2].state
        if look.settled and not look.running and states[-1:] != [state]:
            states.append(state)
            if len(states) == 1:
                gates.accept(out, "montage", {2: look.plans["montage"].sections[2].missed}, "")
            elif len(states) == 2:
                gates.revoke(out, "montage", [2])

    last = engine.run(see, next_look_s=0.05, stop=lambda: len(states) == 3)
    assert states == ["held", "accepted", "held"] and last.settled
    assert not open_volume(last.plans["alignment"].values["aligned"]).read()[2].any()


@pytest.mark.parametrize(
    ("step", "more", "message"),
    [
        ("alignment", {"action": "solve"}, "step alignment: the pipeline decides about action"),
        (
            "alignment",
            {"montage": "${montage.outptu}"},
            r"\$\{montage.outptu\} \(did you mean 'output'\?\): step montage gives output",
        ),
        ("montage", {"sections": [0, 40]}, r"sections \[40\]: not in .*tiles.csv, which has 6 sections from 0 to 5"),
    ],
)
def test_what_a_pipeline_cannot_do_is_said(
    tiles: Path, tmp_path: Path, step: str, more: dict[str, Any], message: str
) -> None:
    good = pipeline(tiles)
    changed = {step: {"parameters": {**good.steps[step].parameters, **more}}}
    with pytest.raises(ParameterError, match=message):
        look = Engine(pipeline(tiles, changed.get("montage"), changed.get("alignment")), tmp_path, StageJobs()).look()
        raise ParameterError("; ".join(look.broken.values()))


def test_sections_that_the_pipeline_holds_by_its_own_word_are_left_out(tiles: Path, tmp_path: Path) -> None:
    parameters = {**pipeline(tiles).steps["alignment"].parameters, "held": [3]}
    look = run(pipeline(tiles, alignment={"parameters": parameters}), tmp_path / "out", StageJobs())
    assert look.plans["alignment"].sections[3].state == "absent"
    assert not open_volume(look.plans["alignment"].values["aligned"]).read()[3].any()


def test_a_table_that_cannot_be_read_is_said_and_nothing_is_done(tiles: Path, tmp_path: Path) -> None:
    tiles.write_text("path,section\nx.tif,0\n")
    jobs = StageJobs()
    look = run(pipeline(tiles), tmp_path / "out", jobs)
    assert "tiles.csv" in look.broken["montage"] and jobs.take() == []


def test_a_damaged_note_of_what_was_done_is_an_error_that_names_it(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "latest.json").write_text('{"montage/00000": ')
    with pytest.raises(DataError, match=r"latest\.json.*damaged"):
        Engine(pipeline(tiles), out, StageJobs())
