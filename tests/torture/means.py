"""Every means by which a program cancels a task, and what its caller must see of it.

Each runs ``work`` on an event loop of its own with the trigger armed, and asserts that the cancellation, if it came, is seen
once, in the way in which this means shows itself, and that no task is left.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import trio

from tests.torture.points import Instrument, Points

Work = Callable[[], Coroutine[Any, Any, object]]

LATER = 3600.0


@dataclass(frozen=True, slots=True)
class Means:
    """``delay``: whether what is done when it has come too late tells nothing: another task has to act upon the trigger first.

    ``torn``: it stops even the tail.
    """

    name: str
    backend: str
    run: Callable[[Points, Work], None]
    options: dict[str, int] = field(default_factory=dict)
    delay: bool = False
    torn: bool = False


# -- asyncio


def _asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        runner.run(main())
    assert not complaints, complaints


@contextmanager
def _watched(points: Points) -> Iterator[None]:
    """Count the suspensions of all tasks that begin from now on."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(points.task_factory)
    try:
        yield
    finally:
        points.disarm()
        loop.set_task_factory(None)


async def _no_task_left() -> None:
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"


def _task_cancel(points: Points, work: Work) -> None:
    async def main() -> None:
        with _watched(points):
            task = asyncio.ensure_future(work())
            points.arm(task.cancel)
            await asyncio.wait([task])
        await _no_task_left()
        if not task.cancelled():
            task.result()
        assert task.cancelled() is points.fired, "the cancellation was swallowed"
        assert task.cancelling() == points.pulled

    _asyncio(main)


def _asyncio_timeout(points: Points, work: Work) -> None:
    async def main() -> None:
        seen = False
        timeout = asyncio.timeout(LATER)
        try:
            async with timeout:
                with _watched(points):
                    points.arm(lambda: timeout.reschedule(asyncio.get_running_loop().time()))
                    await points.counted(work())
        except TimeoutError:
            seen = True
        await _no_task_left()
        assert seen is timeout.expired(), "the timeout was swallowed"
        _check_counter()

    _asyncio(main)


def _check_counter() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


def _wait_for(points: Points, work: Work) -> None:
    """Its time can't be changed, so its waiting is cancelled, as by a timeout around it."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelled = False
        with _watched(points):
            points.arm(task.cancel)
            try:
                await asyncio.wait_for(points.counted(work()), LATER)
            except asyncio.CancelledError:
                cancelled = True
                task.uncancel()
        assert cancelled is points.fired, "the cancellation was swallowed"
        await _no_task_left()
        _check_counter()

    _asyncio(main)


class _Sibling(Exception):
    """Fails beside the work."""


def _asyncio_sibling(points: Points, work: Work) -> None:
    async def main() -> None:
        now = asyncio.Event()

        async def fail() -> None:
            await now.wait()
            raise _Sibling

        errors: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as group:
                sibling = group.create_task(fail())
                with _watched(points):
                    task = group.create_task(work())
                    points.arm(now.set)
                    await asyncio.wait([task])
                if not points.fired:
                    sibling.cancel()
        except BaseExceptionGroup as group_error:
            errors.extend(group_error.exceptions)
        await _no_task_left()
        _only_the_sibling(errors, points)
        _check_counter()

    _asyncio(main)


def _only_the_sibling(errors: list[BaseException], points: Points) -> None:
    assert [type(error) for error in errors] == [_Sibling] * points.fired, errors


def _asyncio_ctrl_c(points: Points, work: Work) -> None:
    """Runner's handler of SIGINT cancels the main task."""
    _interrupted(points, work, again=False)


def _asyncio_two_ctrl_cs(points: Points, work: Work) -> None:
    """At the second one KeyboardInterrupt leaves the event loop, and every task is cancelled."""
    _interrupted(points, work, again=True)


def _interrupted(points: Points, work: Work, *, again: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            if again:
                loop.call_soon(signal.raise_signal, signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        try:
            with _watched(points):
                points.arm(interrupt)
                await points.counted(work())
        finally:
            if not again:
                await _no_task_left()

    seen = False
    with _python_s_own_handler():
        try:
            _asyncio(main)
        except KeyboardInterrupt:
            seen = True
    assert seen is points.fired, "the interrupt was swallowed"


@contextmanager
def _python_s_own_handler() -> Iterator[None]:
    """Only in place of it do event loops install theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -- anyio's means, under asyncio


def _anyio_scope(points: Points, work: Work) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope, _watched(points):
            points.arm(scope.cancel)
            await points.counted(work())
            await anyio.lowlevel.checkpoint()
        await _no_task_left()
        assert scope.cancelled_caught is points.fired, "the cancellation was swallowed"
        _check_counter()

    _asyncio(main)


def _anyio_deadline(points: Points, work: Work) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen = False
        try:
            with anyio.fail_after(LATER) as scope, _watched(points):
                points.arm(lambda: setattr(scope, "deadline", loop.time()))
                await points.counted(work())
                await anyio.lowlevel.checkpoint()
        except TimeoutError:
            seen = True
        await _no_task_left()
        assert seen is points.fired, "the deadline was swallowed"
        _check_counter()

    _asyncio(main)


def _anyio_sibling(points: Points, work: Work) -> None:
    async def main() -> None:
        await _beside_a_failing_task(points, work, points.counted, _watched(points))
        await _no_task_left()
        _check_counter()

    _asyncio(main)


async def _beside_a_failing_task(
    points: Points, work: Work, wrap: Callable[[Coroutine[Any, Any, object]], Awaitable[object]], watched: Any
) -> None:
    now = anyio.Event()

    async def fail() -> None:
        await now.wait()
        raise _Sibling

    errors: list[BaseException] = []
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await anyio.lowlevel.checkpoint()
            with watched:
                points.arm(now.set)
                await wrap(work())
            if not points.fired:
                group.cancel_scope.cancel()
    except BaseExceptionGroup as group_error:
        errors.extend(group_error.exceptions)
    _only_the_sibling(errors, points)


# -- trio


def _trio(points: Points, main: Callable[[], Awaitable[None]]) -> None:
    async def checked() -> None:
        before = _trio_tasks()
        try:
            await main()
        finally:
            left = _trio_tasks() - before
            assert not left, f"tasks are left: {left}"

    trio.run(checked, instruments=[Instrument(points)])


def _trio_tasks() -> set[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, todo = set(), [root]
    while todo:
        task = todo.pop()
        found.add(task)
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


@contextmanager
def _until_the_end(points: Points) -> Iterator[None]:
    try:
        yield
    finally:
        points.disarm()


def _trio_scope(points: Points, work: Work) -> None:
    async def main() -> None:
        with trio.CancelScope() as scope, _until_the_end(points):
            points.arm(scope.cancel)
            await work()
            points.disarm()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught is points.fired, "the cancellation was swallowed"

    _trio(points, main)


def _trio_deadline(points: Points, work: Work) -> None:
    async def main() -> None:
        with trio.move_on_after(LATER) as scope, _until_the_end(points):
            points.arm(lambda: setattr(scope, "deadline", trio.current_time()))
            await work()
            points.disarm()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught is points.fired, "the deadline was swallowed"

    _trio(points, main)


def _trio_nursery(points: Points, work: Work) -> None:
    """The scope of the nursery that the work runs in as a child."""

    async def main() -> None:
        with _until_the_end(points):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work)
                points.arm(nursery.cancel_scope.cancel)

    _trio(points, main)


def _trio_sibling(points: Points, work: Work) -> None:
    async def main() -> None:
        await _beside_a_failing_task(points, work, lambda coroutine: coroutine, _until_the_end(points))

    _trio(points, main)


def _trio_ctrl_c(points: Points, work: Work) -> None:
    """It comes while trio runs, which raises it in the main task; the work is there, and must let it through as it is."""

    async def main() -> None:
        try:
            with _until_the_end(points):
                points.arm(lambda: signal.raise_signal(signal.SIGINT))
                await work()
        except BaseException as error:
            seen.append(error)
            raise

    seen: list[BaseException] = []
    ended: list[BaseException] = []
    with _python_s_own_handler():
        try:
            _trio(points, main)
        except KeyboardInterrupt as error:
            ended.append(error)
    assert bool(ended) is points.fired, "the interrupt was swallowed"
    assert all(isinstance(error, KeyboardInterrupt) for error in seen), seen


ASYNCIO = [
    Means("task-cancel", "asyncio", _task_cancel),
    Means("task-cancel-again", "asyncio", _task_cancel, {"again": 40}),
    Means("timeout", "asyncio", _asyncio_timeout, delay=True),
    Means("wait-for", "asyncio", _wait_for),
    Means("task-group", "asyncio", _asyncio_sibling, delay=True),
    Means("ctrl-c", "asyncio", _asyncio_ctrl_c),
    Means("two-ctrl-cs", "asyncio", _asyncio_two_ctrl_cs, {"turns": 0}, torn=True),
    Means("anyio-scope", "asyncio", _anyio_scope, delay=True),
    Means("anyio-deadline", "asyncio", _anyio_deadline, delay=True),
    Means("anyio-group", "asyncio", _anyio_sibling, delay=True),
]
TRIO = [
    Means("scope", "trio", _trio_scope),
    Means("deadline", "trio", _trio_deadline, delay=True),
    Means("nursery", "trio", _trio_nursery),
    Means("sibling", "trio", _trio_sibling, delay=True),
    Means("ctrl-c", "trio", _trio_ctrl_c),
]
ALL = ASYNCIO + TRIO

__all__ = ["ALL", "Means", "Work"]
