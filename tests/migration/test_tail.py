"""When the part of a run begins that nothing interrupts."""

from __future__ import annotations

import anyio
import pytest

from asyncmig.migration.progress import Progress
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.tail import run_tail
from tests.caches import new_reporter

pytestmark = pytest.mark.anyio


class Begun(Progress):
    def __init__(self) -> None:
        self.begun = False
        self.outcomes: list[Outcome] = []

    def ended(self, report: Report) -> None:
        self.outcomes.append(report.outcome)

    def uncancellable(self) -> None:
        self.begun = True


async def test_whoever_is_cancelled_already_does_not_begin_it() -> None:
    """The scope may have been cancelled when what came before had just ended."""
    events: list[str] = []

    async def work() -> None:
        events.append("work")

    progress = Begun()
    reporter = new_reporter("", Outcome.MIGRATED, progress=progress)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_tail(work, reporter, Outcome.MIGRATED)
    assert scope.cancelled_caught
    assert (progress.begun, events, progress.outcomes) == (False, [], [])


async def test_whoever_is_cancelled_later_waits_for_its_end() -> None:
    events: list[str] = []

    async def work() -> None:
        scope.cancel()
        await anyio.sleep(0.01)
        events.append("work")

    progress = Begun()
    reporter = new_reporter("", Outcome.NOTHING_TO_DO, progress=progress)
    with anyio.CancelScope() as scope:
        await run_tail(work, reporter, Outcome.MIGRATED)
    assert (progress.begun, events, progress.outcomes) == (True, ["work"], [Outcome.MIGRATED])
