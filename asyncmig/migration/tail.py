"""How the part of a run begins that nothing interrupts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio.lowlevel

from asyncmig.concurrency import run_uncancellable
from asyncmig.migration.report import Result
from asyncmig.migration.reporter import Reporter

T = TypeVar("T")
R = TypeVar("R", bound=Result)


async def run_tail(work: Callable[[], Awaitable[T]], reporter: Reporter[R]) -> T:
    """Run ``work`` to its end, whatever cancels the caller from now on.

    One that has been cancelled already gets no further than this: what came before may have ended in that very moment, and a
    scope that is cancelled would not be noticed before the end.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    reporter.uncancellable()
    return await run_uncancellable(work, on_cancel=reporter.cancel_deferred)
