"""How the part of a run begins that nothing interrupts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio.lowlevel

from asyncmig.concurrency import run_uncancellable
from asyncmig.migration.report import Outcome, Report
from asyncmig.migration.reporter import Reporter


async def run_tail(work: Callable[[], Awaitable[None]], reporter: Reporter[Report], outcome: Outcome) -> None:
    """Run ``work`` to its end, whatever cancels the caller from now on, and report the outcome.

    One that has been cancelled already gets no further than this: what came before may have ended in that very moment, and a
    scope that is cancelled would not be noticed before the end.
    """

    async def work_and_tell() -> None:
        await work()
        # Here, because behind it a cancellation that was put off is raised, and nobody would get the report.
        reporter.result.outcome = outcome
        reporter.ended()

    await anyio.lowlevel.checkpoint_if_cancelled()
    reporter.uncancellable()
    await run_uncancellable(work_and_tell, on_cancel=reporter.cancel_deferred)
