"""Where the asyncio side of the adapter runs.

grpclib runs under asyncio only.  In an asyncio program the adapter runs on the program's own event loop.  In a trio program it
runs on an asyncio loop in a thread.  Whole batches cross to that thread: a crossing costs 60 microseconds, too much for each
call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import TYPE_CHECKING, Protocol, TypeVar

from asyncmig.errors import StoreError
from asyncmig.stores.fanout import fan_out

if TYPE_CHECKING:
    import trio

T = TypeVar("T")


class Bridge(Protocol):
    """Runs functions on an asyncio event loop."""

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await ``function()`` in a task of its own on that loop.

        Raises its error unchanged.  Cancellation cancels the function, waits until it has ended, and is raised only then, so
        nothing is left running.
        """
        ...


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """The bridge that fits the running event loop, open until the end of the block."""
    if _in_asyncio():
        yield _Here()
    else:
        async with _LoopThread.open() as thread:
            yield thread


def _in_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


class _Here:
    """The running event loop."""

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        # fan_out runs it in a task that no caller holds: grpclib wakes tasks up by cancelling them natively.
        [result] = await fan_out(lambda _: function(), (None,), concurrency=1)
        return result


class _LoopThread:
    """An asyncio event loop in a thread of its own, for trio."""

    def __init__(self) -> None:
        import trio  # noqa: PLC0415  (optional, but a caller that gets here runs it)

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._started = trio.Event()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name="asyncmig-containerd", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._up = threading.Event()  # set once the thread has its loop, or has failed to get one
        self._failure: Exception | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[_LoopThread]:
        self = cls()
        try:
            self._thread.start()
        except RuntimeError as error:
            raise StoreError(f"cannot start a thread for the calls to containerd: {error}") from error
        try:
            with self._trio.CancelScope(shield=True):
                await self._started.wait()
            if self._failure is not None:
                raise StoreError(f"cannot start an event loop for the calls to containerd: {self._failure}") from self._failure
            yield self
        finally:
            await self._end()

    async def _end(self) -> None:
        # A shield does not stop Ctrl-C, which may arrive before the thread has its loop.  Without the loop the thread could
        # not be told to stop, so wait for it.
        self._up.wait()
        if self._failure is None:
            self._loop.call_soon_threadsafe(self._stop.set)
        try:
            with self._trio.CancelScope(shield=True):
                await self._ended.wait()
        finally:
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # for example, too few file descriptors are left
            self._failure = error
        self._up.set()
        self._tell(self._started)
        self._tell(self._ended)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._up.set()
        self._tell(self._started)
        await self._stop.wait()

    def _tell(self, event: trio.Event) -> None:
        with suppress(self._trio.RunFinishedError):  # trio has been torn down, so no task waits any more
            self._token.run_sync_soon(event.set)

    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        done = self._trio.Event()
        tasks: list[asyncio.Task[T]] = []

        async def call() -> T:
            return await function()

        def start() -> None:
            task = self._loop.create_task(call())
            task.add_done_callback(lambda _: self._tell(done))
            tasks.append(task)

        def cancel() -> None:
            tasks[0].cancel()

        # An empty context: a copy of ours would make sniffio report "trio" in the asyncio thread.
        self._loop.call_soon_threadsafe(start, context=Context())
        try:
            await done.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(cancel, context=Context())
            with self._trio.CancelScope(shield=True):
                await done.wait()
            if not tasks[0].cancelled():
                tasks[0].exception()  # retrieved so that asyncio does not complain; the cancellation is what we raise
            raise
        return tasks[0].result()
