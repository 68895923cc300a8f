"""What is shown while a command runs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from asyncmig.cli import progress
from asyncmig.cli.progress import CommandProgress, show_progress
from asyncmig.migration.progress import Stage


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the progress: a list with one number, in seconds."""
    time = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: time[0])
    return time


def run_stages(shown: CommandProgress, now: list[float]) -> None:
    """A stage whose items come one by one, more than are drawn, and one whose number is not known."""
    shown.begin((Stage.OPEN, Stage.RELEASE))
    shown.stage(Stage.OPEN, None)
    shown.advance(3)
    shown.end_stage(Stage.OPEN)
    shown.stage(Stage.RELEASE, 613)
    for _ in range(613):
        now[0] += 0.01
        shown.advance(1)
    shown.end_stage(Stage.RELEASE)


def test_json_is_drawn_by_time_and_ends_at_the_total(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("json") as shown:
        run_stages(shown, now)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    done = [event["done"] for event in events if event["event"] == "progress"]
    assert 40 < len(done) < 70
    assert events[1] == {"event": "stage-end", "stage": "open", "done": 3}
    assert events[-1] == {"event": "stage-end", "stage": "release", "done": 613}


def test_plain_tells_counts(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("plain") as shown:
        run_stages(shown, now)
    assert capsys.readouterr().err.splitlines() == [
        "open: locking and checking the databases",
        "open: 3 done",
        "release: removing v1 labels (not interruptible) (613)",
    ]


@pytest.mark.parametrize("colour", ["", "1"])
def test_bars_end_at_their_totals(
    colour: str, now: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", colour)
    output = io.StringIO()
    consoles: list[Console] = []

    def console(**_: object) -> Console:
        consoles.append(real(file=output, force_terminal=True, width=120))
        return consoles[0]

    real = Console
    monkeypatch.setattr("rich.console.Console", console)
    with show_progress("bar") as shown:
        shown.begin((Stage.OPEN, Stage.RELEASE))
        shown.stage(Stage.OPEN, None)
        shown.advance(3)
        now[0] += 1
        shown.advance(1)
        refresh(shown)
        without_total = output.getvalue()
        shown.end_stage(Stage.OPEN)
        shown.stage(Stage.RELEASE, 613)
        for _ in range(613):
            shown.advance(1)  # in no time at all, so nothing of it is drawn before its end
        shown.end_stage(Stage.RELEASE)
    text = output.getvalue()
    assert "4/?" in without_total
    [row] = [line for line in without_total.splitlines() if "4/?" in line]
    assert "\u2501" not in row, "a full bar where nothing is known"
    assert "613/613" in text
    assert "2/2" in text
    assert "100%" in text


def refresh(shown: CommandProgress) -> None:
    shown._bars.refresh()  # type: ignore[attr-defined]


def test_who_waits_is_told_how_long(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("none") as shown:
        shown.stage(Stage.RELEASE, 100)
        shown.uncancellable()
        now[0] += 5
        shown.advance(50)
        shown.interrupted()
        shown.interrupted()
    assert capsys.readouterr().err == "past the point of no return, finishing; this stage takes about 5 s more\n"
