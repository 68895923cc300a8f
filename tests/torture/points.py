"""The points at which a run can be cancelled: every suspension of every task, every checkpoint in a worker thread.

A run is counted, and at one of its points a trigger is pulled.  Under asyncio each task gets a coroutine that passes on what
its own yields; under trio an instrument counts.  In a worker thread the first point is before a function begins and the last
one behind its end; the thread waits until the cancellation has been delivered, so that it meets it at this point and at no
later one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import trio

from asyncmig import concurrency
from asyncmig.migration.progress import Progress
from asyncmig.stores.containerd import bridge
from tests.clock import SAFETY

T = TypeVar("T")

TURNS = 3
"""Of the event loop, until a cancellation has been delivered and acted upon."""


class Kind(StrEnum):
    """Of a point."""

    AWAIT = "await"
    THREAD = "thread"


class Points(Progress):
    """Counts the points of one run.  As its progress it knows when the tail begins.

    ``number`` 0 only counts.  ``again`` pulls the trigger at the following suspensions, too, so many times.
    """

    def __init__(self, kind: Kind, number: int, *, again: int = 0, turns: int = TURNS) -> None:
        self.kind = kind
        self.number = number
        self.counts = {Kind.AWAIT: 0, Kind.THREAD: 0}
        self.pulled = 0
        self.in_tail = False
        self.fired_in_tail = False
        self._running = 0  # functions that worker threads are in
        self._again = again
        self._turns = turns
        self._armed = False
        self._lock = threading.Lock()
        self._home = threading.current_thread()
        self._trigger: Callable[[], object]
        self._soon: Callable[[Callable[[], object]], object]

    def uncancellable(self) -> None:
        self.in_tail = True

    @property
    def fired(self) -> bool:
        return self.pulled > 0

    def arm(self, trigger: Callable[[], object]) -> None:
        """Count from now on.  Within the event loop."""
        self._trigger = trigger
        self._soon = _call_soon()
        self._armed = True

    def disarm(self) -> None:
        """The run has ended."""
        self._armed = False

    # -- points

    def suspended(self) -> None:
        """A task gives way to others, here or on the event loop that the adapter has in a thread."""
        if not self._armed:
            return
        if threading.current_thread() is not self._home:
            self._reach(Kind.AWAIT)
            return
        self.counts[Kind.AWAIT] += 1
        if self._is_it(Kind.AWAIT) or 0 < self.pulled <= self._again:
            self._pull()

    def _reach(self, kind: Kind) -> None:
        with self._lock:
            self.counts[kind] += 1
            is_it = self._armed and self._is_it(kind)
        if is_it:
            delivered = threading.Event()
            self._soon(partial(self._pull_and_tell, delivered))
            assert delivered.wait(SAFETY), "the event loop is blocked"

    def _is_it(self, kind: Kind) -> bool:
        return kind is self.kind and self.counts[kind] == self.number and not self.fired

    def _pull(self) -> None:
        if not self.fired:
            self.fired_in_tail = self.in_tail
        self.pulled += 1
        self._trigger()

    def _pull_and_tell(self, delivered: threading.Event) -> None:
        try:
            self._pull()
        finally:
            self._after(self._turns, delivered.set)

    def _after(self, turns: int, then: Callable[[], object]) -> None:
        if turns:
            self._soon(partial(self._after, turns - 1, then))
        else:
            then()

    def in_thread(self) -> None:
        """A worker thread is where it looks for a cancellation, or will next."""
        self._reach(Kind.THREAD)

    # -- worker threads

    def begins(self) -> None:
        """A worker thread begins with a function."""
        with self._lock:
            self._running += 1

    def ends(self) -> None:
        """It has ended it."""
        with self._lock:
            self._running -= 1

    def is_idle(self) -> bool:
        """Whether no thread works any more.  One that has just told its result may still be on its way out."""
        deadline = time.monotonic() + SAFETY
        while self._running and time.monotonic() < deadline:
            time.sleep(0.001)
        return self._running == 0

    # -- where they are met

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Meet the checkpoints of the worker threads, and the tasks of the adapter's own event loop."""
        with (
            mock.patch.object(concurrency, "_Call", partial(_WatchedCall, self)),
            mock.patch.object(bridge._LoopThread, "_main", self._watched_main(bridge._LoopThread._main)),
        ):
            yield

    def _watched_main(self, main: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def watched(thread: Any) -> None:
            asyncio.get_running_loop().set_task_factory(self.task_factory)
            await main(thread)

        return watched

    def task_factory(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        """Tasks whose suspensions are counted."""
        task = asyncio.Task(self.counted(coroutine), loop=loop, **options)
        task.add_done_callback(lambda _: _forget(coroutine))
        return task

    async def counted(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await the coroutine; a coroutine itself, because anyio asks for the states of those."""
        return await _Counted(coroutine, self.suspended)


def _forget(coroutine: Coroutine[Any, Any, object]) -> None:
    """Of a task that was cancelled before it began, its coroutine has never been awaited, which Python would complain about."""
    with suppress(BaseException):
        coroutine.throw(asyncio.CancelledError())


class _Counted(Awaitable[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], on_suspension: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._on_suspension = on_suspension

    def __await__(self) -> Generator[Any, Any, T]:
        step: Callable[[], Any] = partial(self._coroutine.send, None)
        while True:
            try:
                waited_for = step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self._on_suspension()
            try:
                sent = yield waited_for
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, sent)


class Instrument(trio.abc.Instrument):
    """Counts the steps of trio's tasks."""

    def __init__(self, points: Points) -> None:
        self._points = points

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._points.suspended()


class _WatchedCall(concurrency._Call[Any]):
    """A function for a worker thread whose checkpoints are points."""

    def __init__(self, points: Points, function: partial[Any]) -> None:
        checkpoint, *arguments = function.args

        def watched() -> None:
            points.in_thread()
            checkpoint()

        super().__init__(partial(function.func, watched, *arguments, **function.keywords))
        self._points = points

    def __call__(self) -> Any:
        self._points.begins()
        try:
            self._points.in_thread()
            return super().__call__()
        finally:
            self._points.in_thread()
            self._points.ends()


def _call_soon() -> Callable[[Callable[[], object]], object]:
    """How another thread gets something called by the running event loop."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        return trio.lowlevel.current_trio_token().run_sync_soon
