"""How the part of a run begins that nothing interrupts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio.lowlevel

from asyncmig.concurrency import run_uncancellable
from asyncmig.migration.progress import Progress

T = TypeVar("T")


async def run_tail(work: Callable[[], Awaitable[T]], progress: Progress) -> T:
    """Run ``work`` to its end, whatever cancels the caller from now on.

    One that has been cancelled already gets no further than this: what came before may have ended in that very moment, and a
    scope that is cancelled would not be noticed before the end.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    progress.uncancellable()
    return await run_uncancellable(work, on_cancel=progress.cancel_deferred)
