"""Running an async function from the command line, with signals that cancel it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import click
from anyio.abc import TaskStatus

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the command before it changed anything."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"{received.name}: stopped, nothing was changed")
        self.signal = received


def run(function: Callable[[], Awaitable[T]], *, backend: str, on_signal: Callable[[], None]) -> T:
    """Run ``function`` to its result; SIGINT, SIGTERM and SIGHUP cancel it, and ``on_signal`` is called.

    Signals are received as events, because a KeyboardInterrupt in the main task would tear even a shielded section, and they
    go on being received after the first one, however impatient the user.  Raises :class:`Interrupted` if the function did
    not complete.
    """
    if backend == "trio":
        _require_trio()
    return anyio.run(_run, function, on_signal, backend=backend)


async def _run(function: Callable[[], Awaitable[T]], on_signal: Callable[[], None]) -> T:
    results: list[T] = []
    received: list[signal.Signals] = []
    # Errors are carried out by hand: a task group would wrap them in a group.
    errors: list[Exception] = []
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            await group.start(_receive_signals, scope, received, on_signal)
            try:
                results.append(await function())
            except Exception as error:
                errors.append(error)
        group.cancel_scope.cancel()
    if errors:
        raise errors[0]
    if not results:
        raise Interrupted(received[0])
    return results[0]


async def _receive_signals(
    scope: anyio.CancelScope,
    received: list[signal.Signals],
    on_signal: Callable[[], None],
    *,
    task_status: TaskStatus[None],
) -> None:
    try:
        with anyio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                received.append(number)
                scope.cancel()
                on_signal()
    finally:
        # What remains is to print the outcome; that must not be lost to one more Ctrl-C.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _require_trio() -> None:
    try:
        import trio  # noqa: F401, PLC0415
    except ImportError:
        raise click.UsageError("trio is not installed; pip install 'asyncmig[trio]'") from None
