"""How a search stands, by hand-computed journals, and what `ensemble search status` and `resize` say of it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import FailureKind
from ensemble.campaigns import Campaign, CampaignPlan, create_campaign
from ensemble.cli.main import _run
from ensemble.cli.search_status import _lines
from ensemble.jobs import Outcome
from ensemble.search import events
from ensemble.search.control import Control, Orders, standing_orders
from ensemble.search.driver import Limits
from ensemble.search.ledger import Ledger, TrialState
from ensemble.search.seats import Seat
from ensemble.search.standing import Standing, standing

BEGIN = 1_000_000.0


def at(seconds: float, event: events.Event) -> events.Event:
    return {**event, "time": BEGIN + seconds}


def ran(start: float, end: float) -> Outcome:
    record = {"result": {}, "cost": {"start": BEGIN + start, "end": BEGIN + end}}
    return Outcome("key", 0, record)


def failed(kind: FailureKind) -> Outcome:
    return Outcome("key", 0, None, kind, "message")


def begun(*rungs: int, objectives: tuple[str, ...] = ("accuracy",)) -> events.Event:
    return at(0, events.search_begun(["x"], objectives, rungs, seed=0, source="s"))


def ledger_of(path: Path, *told: events.Event) -> Ledger:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(event) + "\n" for event in told))
    return Ledger(path)


def stands(ledger: Ledger, seconds: float, workers: int = 2, trials: int = 10, driver: float = 0) -> Standing:
    return standing(ledger, [Orders(workers, trials, BEGIN + driver, "host:1")], BEGIN + seconds - 3, BEGIN + seconds)


def one_run(path: Path) -> Ledger:
    """Two workers, 100 s: trial 0 ran from 0 to 60 s, 1 diverged at 10 s, 2 has run since 60 s, 3 waits for a node."""
    return ledger_of(
        path,
        begun(),
        *(at(0, events.suggested(n, {"x": float(n), "unused": None})) for n in range(4)),
        at(0, events.submitted(0)),
        at(0, events.submitted(1)),
        at(10, events.ended(1, 0, None, failed(FailureKind.DIVERGED))),
        at(60, events.ended(0, 0, (0.5,), ran(0, 60))),
        at(60, events.submitted(2, nodes=2)),
        at(70, events.submitted(3)),
    )


def test_a_plain_search(tmp_path: Path) -> None:
    found = stands(one_run(tmp_path / "journal.jsonl"), 100)
    assert found.trials == 4
    assert {state: n for state, n in found.states.items() if n} == {
        TrialState.SUBMITTED: 2,
        TrialState.DONE: 1,
        TrialState.FAILED: 1,
    }
    assert found.failures == {"diverged": 1}
    assert (found.wanted, found.ended, found.finished, found.retried) == (10, 2, False, 0)
    assert (found.workers, found.busy) == (2, 3)
    assert found.pace == pytest.approx(2 / 100)
    assert found.left_s == pytest.approx(8 / (2 / 100))
    # 60 s of one node, 40 s of two, of two nodes for 100 s; trial 3 has no node.
    assert found.utilisation == pytest.approx((60 + 2 * 40) / 200)
    assert found.best is not None
    assert found.best.number == 0
    assert (found.objectives, found.front, found.quiet_s) == (("accuracy",), (), 3)
    assert [(rung.budget, rung.running, rung.reported) for rung in found.rungs] == [(None, 2, 1)]


def test_only_the_time_of_this_driver_counts(tmp_path: Path) -> None:
    found = stands(one_run(tmp_path / "journal.jsonl"), 100, workers=4, driver=50)
    assert found.utilisation == pytest.approx((10 + 2 * 40 + 30) / (4 * 50))
    assert found.pace == pytest.approx(1 / 50)


def test_the_window_is_ten_minutes_or_three_trials(tmp_path: Path) -> None:
    short = ledger_of(tmp_path / "a" / "journal.jsonl", *finished_in(100), *finished_in(150, first=1))
    assert stands(short, 700).pace == pytest.approx(1 / 600)
    long = ledger_of(tmp_path / "b" / "journal.jsonl", *finished_in(900), *finished_in(900, first=1))
    assert stands(long, 2000).pace == pytest.approx(2 / 2000)
    assert stands(long, 4000).pace == 0


def finished_in(seconds: float, first: int = 0) -> list[events.Event]:
    return [
        at(0, events.suggested(first, {"x": first})),
        at(0, events.submitted(first)),
        at(seconds, events.ended(first, 0, (1.0,), ran(0, seconds))),
    ]


def test_rungs_retries_and_stopped_trials(tmp_path: Path) -> None:
    ledger = ledger_of(
        tmp_path / "journal.jsonl",
        begun(10, 30),
        *(at(0, events.suggested(n, {"x": float(n)})) for n in range(4)),
        *(at(0, events.submitted(n)) for n in range(4)),
        at(10, events.reported(0, 0, (0.9,), ran(0, 10))),
        at(10, events.reported(1, 0, (0.1,), ran(0, 10))),
        at(10, events.reported(2, 0, (0.2,), ran(0, 10))),
        at(10, events.attempt_failed(3, 0, failed(FailureKind.KILLED), BEGIN + 20)),
        at(11, events.submitted(0, rung=1)),
        at(11, events.stopped(1, "rule")),
    )
    found = stands(ledger, 15)
    assert [(r.budget, r.running, r.waiting, r.reported) for r in found.rungs] == [(10, 0, 2, 3), (30, 1, 0, 0)]
    assert (found.ended, found.retried) == (1, 0)
    ledger.append([at(20, events.submitted(3, attempt=2))])
    assert stands(ledger, 20).retried == 1
    ledger.append([at(25, events.ended(0, 1, (0.3,), ran(11, 25)))])
    best = stands(ledger, 25).best
    assert best is not None  # the only one at the highest rung, though another had more at a lower one
    assert best.number == 0


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    values = [(1.0, 1.0), (2.0, 0.5), (0.5, 0.5), (0.0, 3.0)]
    told = [begun(objectives=("accuracy", "speed"))]
    for n, objectives in enumerate(values):
        told += [events.suggested(n, {"x": n}), events.submitted(n), events.ended(n, 0, objectives, ran(0, 1))]
    found = stands(ledger_of(tmp_path / "journal.jsonl", *told), 10)
    assert found.front == (0, 1, 3)
    assert found.best is not None
    assert found.best.number == 1


def test_a_search_that_has_not_begun_says_nothing_wrong(tmp_path: Path) -> None:
    found = standing(Ledger(tmp_path / "journal.jsonl"), [], BEGIN, BEGIN)
    assert (found.trials, found.best, found.left_s, found.utilisation, found.finished) == (0, None, None, None, False)


def test_thousands_of_trials_are_looked_at_in_an_instant(tmp_path: Path) -> None:
    told = [begun()]
    for n in range(4_000):
        told += [at(n, events.suggested(n, {"x": n})), at(n, events.submitted(n))]
        told.append(at(n + 60, events.ended(n, 0, (float(n),), ran(n, n + 60))))
    ledger = ledger_of(tmp_path / "journal.jsonl", *told)
    begin = time.process_time()
    found = stands(ledger, 4_000, workers=60)
    assert time.process_time() - begin < 0.4
    assert found.utilisation == pytest.approx(1.0, abs=0.01)


def test_several_drivers_stand_together(tmp_path: Path) -> None:
    orders = [Orders(2, 10, BEGIN, "host:1"), Orders(3, 10, BEGIN + 50, "other:1", "site")]
    found = standing(one_run(tmp_path / "journal.jsonl"), orders, BEGIN + 97, BEGIN + 100)
    assert (found.workers, found.drivers, found.wanted) == (5, 2, 10)
    assert any(text.startswith("3 busy of 5, of 2 drivers") for _, text in _lines(found, driven=True))


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """A campaign in the home that the command finds, with a search that a driver has begun."""
    monkeypatch.setenv("ENSEMBLE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "140")
    made = create_campaign(tmp_path, CampaignPlan(name="demo"))
    one_run(made.folder / "searches" / "quick" / "journal.jsonl")
    Control(Seat(0, made.folder / "searches" / "quick"), Limits(2, 10))
    return made


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code: Any = _run(list(arguments), debug=False)
    captured = capsys.readouterr()
    return code or 0, captured.out, captured.err


def test_status_says_how_a_search_stands(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "search", "status", "demo")
    assert code == 0
    for text in (
        "search quick",
        "4 of 10: 2 SUBMITTED, 1 DONE, 1 FAILED",
        "1 diverged",
        "3 busy of 2",
        "trial 0: accuracy 0.5; x=0",
        "none runs",
    ):
        assert text in out
    assert "unused" not in out


def test_watch_follows_the_journal_to_the_end(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    folder = campaign.folder / "searches" / "quick"
    Control(Seat(0, folder), Limits(2, 4))
    writer = Ledger(folder / "journal.jsonl")

    def end() -> None:
        writer.append([at(90, events.ended(2, 0, (0.7,), ran(60, 90)))])
        time.sleep(0.3)
        writer.append([at(95, events.ended(3, 0, (0.6,), ran(90, 95)))])

    thread = threading.Timer(0.3, end)
    thread.start()
    code, out, _ = call(capsys, "search", "status", "demo", "quick", "--watch", "--interval", "0.1")
    thread.join()
    assert code == 0
    assert "trial 2: accuracy 0.7" in out
    assert "3 DONE, 1 FAILED" in out
    assert "all trials have ended" in out


def test_resize_tells_the_driver(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "search", "resize", "demo", "quick", "--workers", "64")
    assert (code, out) == (0, "quick: 64 workers, 10 trials in all\n")
    (orders,) = standing_orders(campaign.folder / "searches" / "quick")
    assert (orders.workers, orders.trials) == (64, 10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["resize", "demo", "slow", "--workers", "3"], "'slow': was not started in campaign demo; there are: quick"),
        (["resize", "demo", "quick"], "give --workers or --trials"),
        (["resize", "demo", "quick", "--workers", "0"], "Invalid value for '--workers'"),
        (["status", "none"], "'none': no such campaign"),
        (["status", "demo", "slow"], "'slow': was not started"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], sentence: str, campaign: Campaign, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "search", *arguments)
    assert code == 2
    assert sentence in err


def test_a_campaign_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENSEMBLE_HOME", str(tmp_path))
    create_campaign(tmp_path, CampaignPlan(name="empty"))
    code, out, _ = call(capsys, "search", "status", "empty")
    assert (code, out) == (0, "campaign empty: no search was started yet\n")
