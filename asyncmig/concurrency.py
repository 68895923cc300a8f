"""Worker threads, and sections that no cancellation can interrupt.

A shielded anyio scope alone is not enough for either.  ``Task.cancel()``, ``asyncio.timeout``, a failing sibling in
``asyncio.TaskGroup`` and Ctrl-C in the main task all interrupt code inside ``CancelScope(shield=True)``: asyncio's own
cancellation knows nothing of anyio's scopes.  So the work runs in a task of its own that no caller holds.  The caller waits
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
"""Seconds after which a worker thread releases the interpreter lock of its own accord.

Python takes the lock away only after 5 ms, and an embedding event loop would wait that long for each turn.  The thread gets
it back after about 0.1 ms, which is how long Linux takes for ``sleep(0)``; releasing it more often would cost more than it
gains.
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

    Cancellation of any kind makes the next ``checkpoint()`` in the thread raise.  It is raised here only after the function
    has ended: no thread goes on working behind the caller's back.  If the function fails with an error of its own meanwhile,
    that error is raised instead of the cancellation; if it returns a result, the result is dropped.
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
            sleep(0)  # releases the interpreter lock
            yield_at = perf_counter() + _YIELD_AFTER

    call = _Call(partial(function, checkpoint, *args, **kwargs))

    async def work() -> T:
        try:
            return await anyio.to_thread.run_sync(call)
        except BaseException:
            # Either the function has ended, or the event loop is being torn down: a second Ctrl-C under asyncio.run cancels
            # every task.  Then the caller will soon close the files that the thread works on, and other files may get their
            # numbers.  So stop the thread and wait for it.
            stop()
            call.wait()
            raise

    return await _supervise(work, stop, shield=False)


class _Call(Generic[T]):
    """A function for a worker thread; knows whether it has begun and whether it has ended."""

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
        """Wait until the function has ended.  If it has not begun yet, keep it from beginning and return at once."""
        with self._lock:
            self._abandoned = not self._begun
        if not self._abandoned:
            self._ended.wait()


def stepping(checkpoint: Checkpoint, items: Iterable[Item], progress: Callable[[int], None] | None = None) -> Iterator[Item]:
    """The items, with a checkpoint before every 32nd and after the last: for loops whose steps take a few microseconds each.

    ``progress`` is called with the number of items done since the last call.
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
    """Empty the collections in small steps.

    Python frees a collection that is no longer referenced in one step.  That holds the interpreter lock for 0.1 s per million
    objects or more, and an event loop would have to wait that long.
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

    ``on_cancel`` is called when a cancellation arrives meanwhile.  A native asyncio cancellation or a ``KeyboardInterrupt`` is
    raised again when the work has ended; anyio's and trio's scopes deliver theirs at the next checkpoint anyway.  If the work
    fails, its error is raised instead of the cancellation.
    """
    return await _supervise(work, on_cancel, shield=True)


async def close_in_thread(close: Callable[[], None]) -> None:
    """Call ``close`` in a worker thread, whatever cancels the caller.  ``close`` may be called twice.

    An event loop that is being torn down starts no new work; then ``close`` is called here, in the caller's thread.
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
                            # Under trio, this task may simply have run first.  asyncio never does that: there the event
                            # loop is being torn down and has cancelled the other task before its first step, so nobody
                            # will ever set the event.
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
    """Keep Ctrl-C out of ``function``.

    trio raises KeyboardInterrupt in whatever task is running.  If that task is protected, it raises it in the main task.
    """
    trio = sys.modules.get("trio")
    if trio is not None and anyio.get_cancelled_exc_class() is trio.Cancelled:
        protected: Callable[[], Coroutine[Any, Any, None]] = trio.lowlevel.enable_ki_protection(function)
        return protected
    return function
