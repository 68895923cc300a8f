"""Worker threads and sections that no cancellation can tear.

A shielded anyio scope alone is not enough for either.  ``Task.cancel()``, ``asyncio.timeout``, a failing sibling in
``asyncio.TaskGroup`` and Ctrl-C in the main task all interrupt code inside ``CancelScope(shield=True)``: asyncio's own
cancellation knows nothing of anyio's scopes.  So the work runs in a task of its own that no caller holds, and the caller waits
for it, remembers a cancellation that arrives, and raises it again when the work has ended.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from functools import partial
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

if TYPE_CHECKING:
    from asyncmig.bolt.walk import Checkpoint

_YIELD_AFTER = 0.002
"""Seconds after which a worker thread lets go of the interpreter lock of its own accord.

Python takes it away only after 5 ms, and an embedding event loop would wait that long for each turn.  The thread gets it
back after about 0.1 ms, what Linux makes of a sleep of no time at all, so more often would cost more than it gives.
"""

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


class _Stopped(Exception):
    """Raised by a checkpoint after the caller was cancelled."""


def _ignore() -> None:
    """Do nothing about a cancellation."""


async def in_thread(function: Callable[Concatenate[Checkpoint, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function(checkpoint, *args, **kwargs)`` in a worker thread.

    Cancellation of any kind makes the next ``checkpoint()`` in the thread raise, and is raised here once the function has
    ended: a thread is never left behind to go on working.  If the function ends with a result or an error of its own all the
    same, an error is raised in place of the cancellation, and a result is dropped.
    """
    stopped = False
    yield_at = 0.0

    def stop() -> None:
        nonlocal stopped
        stopped = True

    def checkpoint() -> None:
        nonlocal yield_at
        if stopped:
            raise _Stopped
        if perf_counter() >= yield_at:
            sleep(0)  # lets go of the interpreter lock
            yield_at = perf_counter() + _YIELD_AFTER

    call = _Call(partial(function, checkpoint, *args, **kwargs))

    async def work() -> T:
        try:
            return await anyio.to_thread.run_sync(call)
        except BaseException:
            # Either the function has ended, or the event loop is being torn down (a second Ctrl-C under asyncio.run cancels
            # every task) and the caller will close the thread's files in a moment: their numbers would be used again.
            stop()
            call.wait()
            raise

    return await _supervise(work, stop, shield=False)


class _Call(Generic[T]):
    """A function for a worker thread, and whether it has begun and ended."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._begun = self._abandoned = False
        self._ended = threading.Event()

    def __call__(self) -> T:
        with self._lock:
            if self._abandoned:
                raise _Stopped
            self._begun = True
        try:
            return self._function()
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Return when the function has ended; one that has not begun yet never will."""
        with self._lock:
            self._abandoned = not self._begun
        if not self._abandoned:
            self._ended.wait()


def stepping(checkpoint: Checkpoint, items: Iterable[Item], progress: Callable[[int], None] | None = None) -> Iterator[Item]:
    """The items, with a checkpoint before every 32nd and behind the last: for loops whose turns take some microseconds each.

    ``progress`` is called with the number of items dealt with since the last call.
    """
    count = 0
    for item in items:
        if not count & 31:
            checkpoint()
            if count == 256:
                count = 0
                if progress:
                    progress(256)
        yield item
        count += 1
    if progress:
        progress(count)
    checkpoint()


def drop(checkpoint: Checkpoint, *collections: list[Any] | dict[Any, Any]) -> None:
    """Empty the collections in parts.

    To free very many objects in one step, as Python does with a collection that nobody has any more, holds the interpreter
    lock for 0.1 s a million or more, and an event loop would wait that long.
    """
    for items in collections:
        while items:
            checkpoint()
            if isinstance(items, list):
                del items[-512:]
            else:
                for _ in range(min(len(items), 512)):
                    items.popitem()


async def run_uncancellable(work: Callable[[], Awaitable[T]], *, on_cancel: Callable[[], None] = _ignore) -> T:
    """Run ``work`` to its end, whatever cancels the caller.

    ``on_cancel`` is called when a cancellation arrives meanwhile.  A native asyncio cancellation, a ``KeyboardInterrupt``, is
    raised again when the work has ended; anyio's and trio's scopes deliver theirs at the next checkpoint anyway.  If the work
    fails, its error is raised in place of the cancellation.
    """
    return await _supervise(work, on_cancel, shield=True)


async def close_in_thread(close: Callable[[], None]) -> None:
    """Call ``close`` in a worker thread, whatever cancels the caller.  It must bear being called twice.

    An event loop that is being torn down begins nothing any more; then it is called here.
    """
    try:
        await run_uncancellable(partial(in_thread, lambda _: close()))
    except BaseException:
        close()
        raise


async def _supervise(work: Callable[[], Awaitable[T]], on_cancel: Callable[[], None], *, shield: bool) -> T:
    begun = False
    done = anyio.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    async def run() -> None:
        nonlocal begun
        begun = True
        with anyio.CancelScope(shield=True):
            try:
                results.append(await work())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

    cancellation: BaseException | None = None
    cancelled = (anyio.get_cancelled_exc_class(), KeyboardInterrupt)
    try:
        # The scope is around the task group, because leaving a group in a cancelled scope raises.
        with anyio.CancelScope(shield=shield) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_not_interrupted(run))
                while not done.is_set():
                    try:
                        await done.wait()
                    except cancelled as error:
                        cancellation = cancellation or error
                        scope.shield = True
                        on_cancel()
                        if not begun:
                            # trio may have let this task go first.  asyncio never does: there the event loop is being torn
                            # down, which has cancelled the other task before its first step.  Nobody would set the event.
                            with suppress(*cancelled):
                                await anyio.lowlevel.cancel_shielded_checkpoint()
                            if not begun:
                                break
    except cancelled as error:
        # A native cancellation may even arrive while the group is being left.
        cancellation = cancellation or error
    if errors and not isinstance(errors[0], _Stopped):
        raise errors[0]
    if cancellation is not None:
        raise cancellation
    return results[0]


def _not_interrupted(function: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Coroutine[Any, Any, None]]:
    """Keep Ctrl-C out of it.

    trio raises KeyboardInterrupt in whatever code of a task it finds running, unless that is protected; then in the main task.
    """
    trio = sys.modules.get("trio")
    if trio is not None and anyio.get_cancelled_exc_class() is trio.Cancelled:
        protected: Callable[[], Coroutine[Any, Any, None]] = trio.lowlevel.enable_ki_protection(function)
        return protected
    return function
