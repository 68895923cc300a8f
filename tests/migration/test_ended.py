"""The report reaches a caller that is cancelled in the tail, and every other caller once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import asyncmig
from asyncmig import Options, Outcome, Progress, Report, Stage
from asyncmig.migration.journal import JournalFile
from tests.caches import sample_cache

pytestmark = pytest.mark.anyio

Verb = Callable[..., Awaitable[Report]]


class Caller(Progress):
    """Keeps the report, and calls ``at_tail`` in the first stage of the tail."""

    def __init__(self, at_tail: Callable[[], object] | None = None) -> None:
        self.reports: list[Report] = []
        self.after: list[str] = []
        self.in_tail = False
        self.at_tail = at_tail

    def uncancellable(self) -> None:
        self.in_tail = True

    def stage(self, stage: Stage, total: int | None) -> None:
        if self.reports:
            self.after.append(stage)
        if self.in_tail and self.at_tail is not None:
            self.at_tail()
            self.at_tail = None

    def ended(self, report: Report) -> None:
        self.reports.append(report)


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    return sample_cache().write(tmp_path / "runc-overlayfs")


async def prepare(verb: str, worker: Path) -> None:
    """Make it a cache on which the verb has a tail."""
    if verb in ("rollback", "complete"):
        await asyncmig.migrate(worker)
    if verb == "complete":
        file = JournalFile(str(worker / "metadata_v2.db"))
        journal = file.read()
        assert journal is not None
        journal.is_complete = False
        file.write(journal)


def check(verb: str, caller: Caller) -> None:
    [report] = caller.reports
    counts = report.counts
    if verb == "rollback":
        assert (report.outcome, counts.leases_deleted, counts.labels_restored) == (Outcome.ROLLED_BACK, 6, 10)
    elif verb == "complete":
        assert report.outcome is Outcome.COMPLETED
        assert "interrupted-before" in {note.code for note in report.notes}
    else:
        assert (report.outcome, counts.leases_created, counts.records) == (Outcome.MIGRATED, 6, 8)
    assert report.seconds
    assert caller.after == []


def verb_of(name: str) -> Verb:
    return asyncmig.rollback if name == "rollback" else asyncmig.migrate


@pytest.mark.parametrize("verb", ["migrate", "complete", "rollback"])
async def test_a_scope_that_is_cancelled_in_the_tail(verb: str, worker: Path) -> None:
    await prepare(verb, worker)
    with anyio.CancelScope() as scope:
        caller = Caller(scope.cancel)
        await verb_of(verb)(worker, progress=caller)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    check(verb, caller)


@pytest.mark.parametrize("verb", ["migrate", "complete", "rollback"])
def test_a_task_that_is_cancelled_in_the_tail(verb: str, worker: Path) -> None:
    async def main() -> Caller:
        await prepare(verb, worker)
        caller = Caller()
        task = asyncio.ensure_future(verb_of(verb)(worker, progress=caller))
        caller.at_tail = task.cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        return caller

    check(verb, asyncio.run(main()))


async def test_every_run_ends_once(worker: Path, tmp_path: Path) -> None:
    for verb, options, outcome in (
        (asyncmig.plan, None, Outcome.WOULD_MIGRATE),
        (asyncmig.migrate, None, Outcome.MIGRATED),
        (asyncmig.migrate, None, Outcome.ALREADY_MIGRATED),
        (asyncmig.rollback, Options(dry_run=True), Outcome.WOULD_ROLL_BACK),
        (asyncmig.rollback, None, Outcome.ROLLED_BACK),
    ):
        caller = Caller()
        report = await verb(worker, options, progress=caller)
        assert caller.reports == [report]
        assert caller.reports[0] is report
        assert report.outcome is outcome


async def test_a_run_that_fails_has_no_report(worker: Path) -> None:
    (worker / "metadata.db").write_bytes(b"A" * 8192)
    caller = Caller()
    with pytest.raises(asyncmig.AsyncmigError):
        await asyncmig.migrate(worker, progress=caller)
    assert caller.reports == []
