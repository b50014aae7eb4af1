"""Sites without a running service: bad input, the template's files, and the classes that settings.yml names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import DataError, ParameterError, StateError
from ensemble import sites
from ensemble.service.processes import wait_until
from ensemble.sites.site import MARKER, TEMPLATES, templates


def test_the_local_template_is_there() -> None:
    assert "local" in templates()
    assert {path.name for path in (TEMPLATES / "local").iterdir()} >= {"settings.yml", "job-template.sh", "README.md"}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"nodes": -1}, ParameterError, "nodes = -1: expected a number from 1"),
        ({"nodes": 0}, ParameterError, "nodes = 0"),
        ({"nodes": 10**6}, ParameterError, "nodes = 1000000"),
        ({"name": "../up"}, ParameterError, "site name"),
        ({"name": ""}, ParameterError, "site name"),
        ({"template": "theta"}, DataError, "'theta': no such site template; expected one of local"),
        ({}, StateError, "ensemble service start"),
    ],
)
def test_bad_input_is_told_first(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sites.create_site(tmp_path, **{"name": "laptop", **arguments})
    assert list(tmp_path.iterdir()) == []


def _fake_site(home: Path, name: str, settings: str) -> Path:
    folder = home / "sites" / name
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("7")
    (folder / "settings.yml").write_text(settings)
    return folder


def test_sites_are_found_by_name(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is none"):
        sites.open_site(tmp_path, "laptop")
    folder = _fake_site(tmp_path, "laptop", "scheduler: {allowed_queues: {local: {max_nodes: 3}}}")
    assert sites.open_site(tmp_path, "laptop") == sites.Site("laptop", 7, folder, 3, tmp_path)
    assert sites.list_sites(tmp_path) == [sites.open_site(tmp_path, "laptop")]
    for name in ("other", "", ".", "laptop/../laptop"):
        with pytest.raises(StateError, match="there is laptop"):
            sites.open_site(tmp_path, name)


@pytest.mark.parametrize("settings", ["", "{", "scheduler: {}", "scheduler: {allowed_queues: {local: {max_nodes: x}}}"])
def test_damaged_settings_are_told(tmp_path: Path, settings: str) -> None:
    _fake_site(tmp_path, "laptop", settings)
    with pytest.raises(DataError, match=r"settings\.yml: is damaged"):
        sites.open_site(tmp_path, "laptop")


def test_a_pid_file_of_another_program_is_no_agent(tmp_path: Path) -> None:
    folder = _fake_site(tmp_path, "laptop", "scheduler: {allowed_queues: {local: {max_nodes: 3}}}")
    site = sites.open_site(tmp_path, "laptop")
    assert not sites.agent_running(site)
    for content in (f"host\n{os.getpid()}", "host\n4194305", "host", ""):
        (folder / "balsam-service.pid").write_text(content)
        assert not sites.agent_running(site)


def test_rendered_settings_are_balsams() -> None:
    import jinja2
    import yaml
    from balsam.config import Settings

    text = jinja2.Template((TEMPLATES / "local" / "settings.yml").read_text()).render(nodes=5)
    settings = Settings(**yaml.safe_load(text))
    assert settings.scheduler is not None
    assert settings.scheduler.allowed_queues["local"].max_nodes == 5
    assert settings.launcher.compute_node.__name__ == "VirtualNode"
    assert settings.launcher.mpi_app_launcher.__name__ == "LocalRun"


def test_the_batch_script_quotes_what_it_is_given(tmp_path: Path) -> None:
    import jinja2

    text = jinja2.Template((TEMPLATES / "local" / "job-template.sh").read_text()).render(
        balsam_site_path=tmp_path,
        balsam_bin=tmp_path,
        num_nodes=3,
        wall_time_min=10,
        job_mode="mpi",
        filter_tags={"campaign": "it's $HOME; x", "stage": "trial"},
        partitions="",
        launcher_cmd="printf '%s\\n' \"$ENSEMBLE_NODES\"",
    )
    (tmp_path / "python").write_text("#!/bin/sh\necho cleaned\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "batch.sh").write_text(text)
    done = subprocess.run(["bash", str(tmp_path / "batch.sh")], capture_output=True, text=True, check=True)
    expected = ["3", "-j", "mpi", "-t", "10", "--tag", "campaign=it's $HOME; x", "--tag", "stage=trial", "cleaned"]
    assert done.stdout.splitlines() == expected


def test_a_batch_job_has_the_nodes_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.launcher_tuning import VirtualNode

    monkeypatch.setenv("ENSEMBLE_NODES", "3")
    nodes = VirtualNode.get_job_nodelist()
    assert len({node.node_id for node in nodes}) == 3
    assert nodes[0].check_fit(num_cpus=1000, num_gpus=0, occupancy=1.0)
    assert nodes[0].assign(1, num_cpus=1000)["cpu_ids"] == []
    assert not nodes[0].check_fit(num_cpus=1, num_gpus=0, occupancy=0.5)
    assert not nodes[1].check_fit(num_cpus=1, num_gpus=1, occupancy=1.0)


def test_the_machines_gpus_are_dealt_out_among_its_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ensemble.launcher_tuning import VirtualNode
    from ensemble.node_manager import QuickNodeManager

    monkeypatch.setenv("ENSEMBLE_NODES", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    manager = QuickNodeManager(VirtualNode.get_job_nodelist())
    size = {"num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 8, "threads_per_core": 1, "gpus_per_rank": 0}
    first, second = (manager.assign_from_params(i, **{**size, "node_occupancy": 0.5}) for i in range(2))
    assert first.gpu_ids == second.gpu_ids == [["4", "7"]]  # both see all that their node has
    two = manager.assign_from_params(2, **{**size, "num_nodes": 2, "node_occupancy": 1.0})
    assert two.gpu_ids == [["5"], ["6"]]
    manager.free(0)
    assert manager.assign_from_params(3, **{**size, "gpus_per_rank": 1, "node_occupancy": 0.5}).gpu_ids == [["4"]]

    seen = "sh -c 'echo $CUDA_VISIBLE_DEVICES'"
    cases: list[tuple[list[list[str]], str]] = [
        (first.gpu_ids, "4,7"),
        ([*two.gpu_ids, ["5"]], "5,6"),
        ([[], []], "4,5,6,7"),
    ]
    for gpus, expected in cases:
        run = _run(tmp_path, seen, nodes=len(gpus), ranks_per_node=1, gpus=gpus)
        monkeypatch.setattr(run, "get_num_ranks", lambda: 1)  # one line
        run.start()
        assert run.wait(timeout=20) == 0
        assert run.tail_output().strip() == expected


def _run(
    folder: Path, command: str, nodes: int = 1, ranks_per_node: int = 1, gpus: list[list[str]] | None = None
) -> Any:
    from balsam.site.launcher import NodeSpec

    from ensemble.launcher_tuning import LocalRun

    names = [f"node{i}" for i in range(nodes)]
    return LocalRun(
        cmdline=command,
        preamble=None,
        envs={"GREETING": "a 'b' $c"},
        cwd=folder,
        outfile_path=folder / "job.out",
        node_spec=NodeSpec(node_ids=names, hostnames=names, gpu_ids=gpus or [[] for _ in names]),
        ranks_per_node=ranks_per_node,
        threads_per_rank=1,
        threads_per_core=1,
        launch_params={},
        gpus_per_rank=0,
    )


def test_one_rank_runs_as_it_is_and_is_pinned_to_no_cpu(tmp_path: Path) -> None:
    code = "import os, json; print(json.dumps([os.environ['GREETING'], sorted(os.sched_getaffinity(0))]))"
    run = _run(tmp_path, f'{sys.executable} -c "{code}"')
    run.start()
    assert run.wait(timeout=20) == 0
    assert json.loads(run.tail_output()) == ["a 'b' $c", sorted(os.sched_getaffinity(0))]


def test_several_ranks_run_under_mpi(tmp_path: Path) -> None:
    run = _run(tmp_path, "sh -c 'echo rank $PMI_RANK of $PMI_SIZE'", nodes=2, ranks_per_node=2)
    run.start()
    assert run.wait(timeout=30) == 0
    assert sorted(run.tail_output().split("\n")[:4]) == [f"rank {i} of 4" for i in range(4)]


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_ending_a_run_ends_its_children(tmp_path: Path, how: str) -> None:
    run = _run(tmp_path, "sleep 61.25 & sleep 61.25; true")
    run.start()
    assert wait_until(lambda: len(_group(run)) == 3, 5.0)
    getattr(run, how)()
    assert run.wait(timeout=5) != 0
    assert wait_until(lambda: _group(run) == [], 5.0)


def _group(run: Any) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, group, stat in rows if int(group) == run._process.pid and "Z" not in stat]


def test_a_run_that_cannot_start_fails(tmp_path: Path) -> None:
    run = _run(tmp_path, "true")
    run._cwd = tmp_path / "missing"
    run.start()
    assert run.poll() != 0
    assert "could not be started" in run.tail_output()


def test_the_scheduler_knows_the_scripts_of_its_site_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble.launcher_tuning import LocalScheduler

    for name in ("one", "two"):
        (tmp_path / name / "qsubmit").mkdir(parents=True)
        (tmp_path / name / "qsubmit" / "qlaunch00001.sh").write_text("echo $ENSEMBLE_LAUNCHER; sleep 30; true\n")
    script = tmp_path / "one" / "qsubmit" / "qlaunch00001.sh"
    monkeypatch.setenv("BALSAM_SITE_PATH", str(tmp_path / "one"))
    pid = LocalScheduler.submit(script, project="local", queue="local", num_nodes=1, wall_time_min=1)
    try:
        assert list(LocalScheduler.get_statuses(user="whoever")) == [pid]
        assert LocalScheduler.get_statuses()[pid].state == "running"
        monkeypatch.setenv("BALSAM_SITE_PATH", str(tmp_path / "two"))
        assert LocalScheduler.get_statuses() == {}
        monkeypatch.setenv("BALSAM_SITE_PATH", str(tmp_path / "one"))
        assert wait_until(lambda: script.with_suffix(".output").read_text() == f"{script}\n", 5.0)
    finally:
        LocalScheduler.delete_job(pid)
    assert LocalScheduler.get_statuses() == {}


def test_updates_go_out_soon_although_more_keep_coming() -> None:
    """Balsam's own loop waits for a second of silence, which a steady stream of updates never grants it."""
    from balsam.site.status_updater import BulkStatusUpdater

    import ensemble.launcher_tuning  # noqa: F401 (tunes the class above)

    sent: list[float] = []

    class Client:
        def close_session(self) -> None: ...

        def bulk_patch(self, url: str, updates: list[dict[str, Any]]) -> None:
            sent.append(time.monotonic())

    updater = BulkStatusUpdater(Client())
    _stop_after(updater, seconds=1.0)
    assert len(sent) >= 5


def _stop_after(updater: Any, seconds: float) -> None:
    """Run the updater's loop in this thread while another one feeds it for `seconds`."""
    import threading
    from datetime import UTC, datetime

    from balsam.util import SigHandler

    def feed() -> None:
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            updater.put(number, state="RUNNING", state_timestamp=datetime.now(UTC))
            time.sleep(0.02)
        SigHandler.set()

    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=feed)
    thread.start()
    try:
        updater._run()
    finally:
        thread.join()
        SigHandler._exit_event.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_pace_is_quick_while_jobs_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble import launcher_tuning

    now = 100.0
    monkeypatch.setattr("ensemble.launcher_tuning.time.monotonic", lambda: now)
    pace = launcher_tuning._Pace()
    assert pace.pause_s(0.05) == 0.05
    now += launcher_tuning.BUSY_S + 0.1
    assert pace.pause_s(0.05) == launcher_tuning.QUIET_POLL_S
    pace.jobs_came()
    assert pace.pause_s(0.05) == 0.05


def test_a_launchers_loop_pauses_and_ends_with_its_time() -> None:
    from ensemble.launcher_tuning import LAUNCHER_POLL_S, _countdown

    begin = time.monotonic()
    left = list(_countdown(0.5 / 60, delay_sec=0))
    assert 0.5 <= time.monotonic() - begin < 2.0
    assert 1 <= len(left) <= 0.5 / LAUNCHER_POLL_S + 1
    assert left == sorted(left, reverse=True)
    assert left[-1] >= 0.0
