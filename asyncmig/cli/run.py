"""Running an async function from the command line, with signals that cancel it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType
from typing import TypeVar

import anyio
import click

from asyncmig.cli.errors import Interrupted
from asyncmig.errors import AsyncmigError, ResourceError, described, lack_of_resources

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(function: Callable[[], Awaitable[T]], *, backend: str, on_signal: Callable[[], None]) -> T:
    """Run ``function`` and return its result.  SIGINT, SIGTERM and SIGHUP cancel it and call ``on_signal``.

    A KeyboardInterrupt in the main task would interrupt even a shielded section, so our own handlers are installed before the
    event loop starts.  The event loop's handlers (``anyio.open_signal_receiver``) would not do: Python's own take their place
    when the loop ends, and one more Ctrl-C at that moment would lose the outcome.  Afterwards the signals are ignored, because
    only printing the outcome remains.

    Raises :class:`Interrupted` if the function did not complete, and :class:`ResourceError` if no event loop can start.
    """
    if backend == "trio":
        _require_trio()
    signals = _Signals(on_signal)
    try:
        return anyio.run(_run, function, signals, backend=backend)
    except Exception as error:
        if signals.has_begun or isinstance(error, AsyncmigError):
            raise
        raise ResourceError(f"cannot start an event loop: {_reason(error)}") from error
    finally:
        signals.ignore()


def _reason(error: BaseException) -> str:
    """Why the event loop could not start: the first lack of resources in the chain of errors.

    asyncio raises another error, which says nothing, when it closes the loop that could not be made.
    """
    last: BaseException | None = error
    while last is not None:
        if lacking := lack_of_resources(last):
            return lacking
        last = last.__context__
    return described(error)


class _Signals:
    """The signals that have arrived, and what to do about the next one."""

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self.received: list[signal.Signals] = []
        self.has_begun = False
        self._on_signal = on_signal
        self._cancel: Callable[[], object] = _nothing
        for number in _SIGNALS:
            if number not in _ignored_from_the_start():
                signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        self._cancel()

    def cancelling(self, scope: anyio.CancelScope) -> None:
        """Cancel ``scope`` at the next signal, on the running event loop; at once if a signal has already arrived."""

        def cancel() -> None:
            scope.cancel()
            self._on_signal()

        self._cancel = partial(_call_soon(), cancel)
        if self.received:
            cancel()

    def ended(self) -> None:
        """Call nothing on the event loop any more, because it ends."""
        self._cancel = _nothing

    def ignore(self) -> None:
        """Ignore all signals from now on."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@cache
def _ignored_from_the_start() -> frozenset[signal.Signals]:
    """nohup ignores SIGHUP; leave it so.  Asked once, because a run ends with all signals ignored, and may not be the last."""
    return frozenset(number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN)


def _nothing() -> None:
    """There is nothing to cancel."""


def _call_soon() -> Callable[[Callable[[], None]], object]:
    """A function with which a signal handler makes the running event loop call another function."""
    loop = _asyncios_loop()
    if loop is not None:
        return loop.call_soon_threadsafe
    import trio  # noqa: PLC0415

    return trio.lowlevel.current_trio_token().run_sync_soon


def _asyncios_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@contextmanager
def _woken_by_signals() -> Iterator[None]:
    """Wake the event loop when a signal arrives, so that our handler runs.

    Python runs handlers in the main thread only.  asyncio goes on waiting if another thread receives the signal, or if the
    main thread receives it just before it starts to wait.  asyncio handles this for its own handlers only, trio for all.
    """
    loop = _asyncios_loop()
    if loop is None:
        yield
        return
    ours, pythons = socket.socketpair()
    with ours, pythons:
        ours.setblocking(False)
        pythons.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)


async def _run(function: Callable[[], Awaitable[T]], signals: _Signals) -> T:
    results: list[T] = []
    with _woken_by_signals(), anyio.CancelScope() as scope:
        signals.has_begun = True
        signals.cancelling(scope)
        try:
            results.append(await function())
        finally:
            signals.ended()
    if not results:
        raise Interrupted(signals.received[0])
    return results[0]


def _require_trio() -> None:
    try:
        import trio  # noqa: F401, PLC0415
    except ImportError as error:
        if lack_of_resources(error):
            raise
        raise click.UsageError("trio is not installed; pip install 'asyncmig[trio]'") from None
