"""Bounded fan-out: many single calls, a limited number at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar, cast

import anyio

from asyncmig.errors import StoreError

Item = TypeVar("Item")
Result = TypeVar("Result")


Progress = Callable[[int], None]
"""Called with the number of items done since the last call."""


def no_progress(count: int) -> None:
    """The progress callback of callers that don't care."""


async def fan_out(
    call: Callable[[Item], Awaitable[Result]], items: Sequence[Item], *, concurrency: int, progress: Progress = no_progress
) -> list[Result]:
    """``call`` every item, at most ``concurrency`` at a time; return the results in the order of the items.

    Workers pull from one iterator, so memory does not grow with the number of items (one task per item costs about 50 times as
    much).  The first error cancels the other workers and is raised as itself, not as a group.  Cancellation cancels the calls
    that are running; calls that have finished have taken effect.
    """
    results: list[Result | None] = [None] * len(items)
    errors: list[BaseException] = []
    done = 0
    pending: Iterator[tuple[int, Item]] = iter(enumerate(items))

    async def worker() -> None:
        nonlocal done
        for i, item in pending:
            try:
                results[i] = await call(item)
                done += 1
                progress(1)
            except Exception as error:
                errors.append(error)
                group.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(concurrency, len(items))):
            group.start_soon(worker)
    if errors:
        raise errors[0]
    if done < len(items):
        # A library has cancelled a worker to wake it up.  Its missing results, None, must not be taken for answers.
        raise StoreError(f"{len(items) - done} of {len(items)} calls were interrupted; run the command again")
    return cast("list[Result]", results)
