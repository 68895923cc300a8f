"""Where the asyncio side of the adapter runs.

grpclib runs under asyncio only.  In an asyncio program the adapter runs on the program's own event loop; in a trio program on
an asyncio loop in a thread, to which whole batches cross: a call each would cost 60 microseconds, a batch costs one crossing.
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

        Its error is raised here as it is.  Cancellation cancels it there, and is raised here when it has ended there: nothing
        is left behind.
        """
        ...


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """The bridge that fits the running event loop, until the end of the block."""
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
        # In a task that no caller holds, because grpclib cancels tasks natively to wake them up.
        [result] = await fan_out(lambda _: function(), (None,), concurrency=1)
        return result


class _LoopThread:
    """An asyncio event loop in a thread of its own, for trio."""

    def __init__(self) -> None:
        import trio  # noqa: PLC0415  (optional; whoever comes here runs it)

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._started = trio.Event()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name="asyncmig-containerd", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._failure: Exception | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[_LoopThread]:
        self = cls()
        try:
            self._thread.start()
        except RuntimeError as error:
            raise StoreError(f"no thread for the calls to containerd: {error}") from error
        with self._trio.CancelScope(shield=True):  # without its loop the thread could not be ended
            await self._started.wait()
        if self._failure is not None:
            self._thread.join()  # it has said all that it had to say
            raise StoreError(f"no event loop for the calls to containerd: {self._failure}") from self._failure
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            with self._trio.CancelScope(shield=True):
                await self._ended.wait()
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # too few file descriptors are left, for example
            self._failure = error
        self._tell(self._started)
        self._tell(self._ended)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tell(self._started)
        await self._stop.wait()

    def _tell(self, event: trio.Event) -> None:
        with suppress(self._trio.RunFinishedError):  # trio has been torn down; nobody waits
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

        # An empty context: in a copy of ours sniffio would say "trio" on the other side.
        self._loop.call_soon_threadsafe(start, context=Context())
        try:
            await done.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(cancel, context=Context())
            with self._trio.CancelScope(shield=True):
                await done.wait()
            if not tasks[0].cancelled():
                tasks[0].exception()  # looked at, so that asyncio does not complain; the cancellation is what counts
            raise
        return tasks[0].result()
