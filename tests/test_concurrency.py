"""Sections that no cancellation tears, and worker threads that none leaves behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import drop, in_thread, run_uncancellable, stepping
from tests.clock import SAFETY

pytestmark = pytest.mark.anyio


class Tail:
    """Work with several checkpoints that notes whether it got to its end."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.completed = False
        self.deferred = 0

    async def work(self) -> str:
        self.begun.set()
        for _ in range(10):
            await anyio.sleep(0.005)
        self.completed = True
        return "result"

    async def run(self) -> str:
        def note() -> None:
            self.deferred += 1

        return await run_uncancellable(self.work, on_cancel=note)


async def test_the_result_comes_back() -> None:
    assert await Tail().run() == "result"


async def test_an_error_comes_out_as_itself() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await run_uncancellable(fail)


async def test_a_cancelled_scope_waits_for_the_end() -> None:
    tail = Tail()
    with anyio.move_on_after(0.01) as scope:
        await tail.run()
        await anyio.lowlevel.checkpoint()
    assert tail.completed
    assert scope.cancelled_caught


async def test_the_result_survives_a_cancelled_scope() -> None:
    results = []
    with anyio.move_on_after(0.01):
        results.append(await Tail().run())
    assert results == ["result"]


async def test_an_error_survives_a_cancelled_scope() -> None:
    async def fail() -> None:
        await anyio.sleep(0.03)
        raise ValueError("from the tail")

    with pytest.raises(ValueError, match="from the tail"), anyio.move_on_after(0.01):
        await run_uncancellable(fail)


async def test_a_scope_cancelled_before_the_start_does_not_keep_it_from_running() -> None:
    tail = Tail()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await tail.run()
    assert tail.completed


async def test_a_failing_sibling_waits_for_the_end() -> None:
    tail = Tail()

    async def fail() -> None:
        await tail.begun.wait()
        raise ValueError("sibling")

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with anyio.create_task_group() as group:
            group.start_soon(tail.run)
            group.start_soon(fail)
    assert tail.completed


async def _cancel_once(tail: Tail) -> None:
    task = asyncio.create_task(tail.run())
    await tail.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _cancel_often(tail: Tail) -> None:
    task = asyncio.create_task(tail.run())
    await tail.begun.wait()
    for _ in range(5):
        task.cancel()
        await asyncio.sleep(0.002)
    with pytest.raises(asyncio.CancelledError):
        await task


async def _timeout(tail: Tail) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await tail.run()


async def _wait_for(tail: Tail) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tail.run(), 0.01)


async def _sibling(tail: Tail) -> None:
    async def fail() -> None:
        await tail.begun.wait()
        raise ValueError("sibling")

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(tail.run())
            group.create_task(fail())


NATIVE = [_cancel_once, _cancel_often, _timeout, _wait_for, _sibling]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("cancel", NATIVE, ids=lambda f: f.__name__.strip("_"))
async def test_native_asyncio_cancellation_waits_for_the_end(cancel: Callable[[Tail], Awaitable[None]]) -> None:
    tail = Tail()
    await cancel(tail)
    assert tail.completed
    assert tail.deferred >= 1


SIGINT_PROGRAM = """
import anyio, os, signal, sys, threading
from asyncmig.concurrency import run_uncancellable

async def work():
    sent = threading.Event()
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        sent.set()
    threading.Thread(target=interrupt).start()
    while not sent.is_set():
        await anyio.sleep(0.01)
    for _ in range(5):
        await anyio.sleep(0.01)
    print("completed", flush=True)

async def main():
    await run_uncancellable(work)

anyio.run(main, backend=sys.argv[1])
"""


def test_ctrl_c_in_the_main_task_waits_for_the_end(anyio_backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGINT_PROGRAM, anyio_backend], capture_output=True, text=True, timeout=SAFETY, check=False
    )
    assert done.stdout == "completed\n"
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode != 0


TWO_SIGINTS_PROGRAM = """
import anyio, os, signal, sys, threading, time
from asyncmig.concurrency import in_thread, run_uncancellable

events = []

def commit(checkpoint):
    def interrupt():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    interrupter.join()
    time.sleep(0.4)
    events.append("thread ended")

async def main():
    try:
        await run_uncancellable(lambda: in_thread(commit))
    finally:
        events.append("files closed")

try:
    anyio.run(main, backend=sys.argv[1])
except BaseException as error:
    events.append(type(error).__name__)
print(events)
"""


def test_a_second_ctrl_c_does_not_close_files_under_a_running_thread(anyio_backend: str) -> None:
    """asyncio.run cancels every task at the second one, whatever shields there are."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_SIGINTS_PROGRAM, anyio_backend], capture_output=True, text=True, timeout=SAFETY, check=True
    )
    assert done.stdout == "['thread ended', 'files closed', 'KeyboardInterrupt']\n"


INTERRUPTED_WITHIN_PROGRAM = """
import anyio, signal, sys
from asyncmig.concurrency import run_uncancellable

async def work():
    signal.raise_signal(signal.SIGINT)
    await anyio.sleep(0.01)
    print("completed", flush=True)

anyio.run(run_uncancellable, work, backend=sys.argv[1])
"""


def test_ctrl_c_while_the_code_of_the_work_itself_runs(anyio_backend: str) -> None:
    """trio would raise KeyboardInterrupt in the midst of it."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WITHIN_PROGRAM, anyio_backend],
        capture_output=True,
        text=True,
        timeout=SAFETY,
        check=False,
    )
    assert done.stdout == "completed\n"
    assert "KeyboardInterrupt" in done.stderr


TORN_DOWN_PROGRAM = """
import asyncio
from asyncmig.concurrency import close_in_thread, run_uncancellable

async def work():
    print("begun")

async def main():
    waiting = run_uncancellable(work), close_in_thread(lambda: print("closed"))
    tasks = [asyncio.ensure_future(coroutine) for coroutine in waiting]
    await asyncio.sleep(0)  # they have made the tasks for the work, which have not had their first step
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait(tasks)
    print([task.cancelled() for task in tasks])

asyncio.run(main())
"""


def test_an_event_loop_that_is_torn_down_before_the_work_begins() -> None:
    """At a second Ctrl-C asyncio.run cancels every task: nobody waits for work that never begins, and files are closed."""
    done = subprocess.run([sys.executable, "-c", TORN_DOWN_PROGRAM], capture_output=True, text=True, timeout=SAFETY, check=True)
    assert done.stdout == "closed\n[True, True]\n"


# -- worker threads


class Loop:
    """Blocking work that goes on until its checkpoint raises."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()

    def run(self, checkpoint: Checkpoint) -> None:
        self.started.set()
        try:
            while True:
                checkpoint()
                time.sleep(0.001)
        finally:
            self.ended.set()


async def test_a_thread_returns_its_result() -> None:
    assert await in_thread(lambda checkpoint, a, b: a + b, 1, b=2) == 3


async def cancel_when(event: threading.Event, scope: anyio.CancelScope) -> None:
    assert await anyio.to_thread.run_sync(event.wait, SAFETY)
    scope.cancel()


async def test_a_cancelled_scope_stops_the_thread() -> None:
    loop = Loop()
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        group.start_soon(cancel_when, loop.started, scope)
        with scope:
            await in_thread(loop.run)
    assert scope.cancelled_caught
    assert loop.ended.is_set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_cancellation_stops_the_thread() -> None:
    loop = Loop()
    task = asyncio.create_task(in_thread(loop.run))
    await anyio.to_thread.run_sync(loop.started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.ended.is_set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_native_timeout_stops_the_thread() -> None:
    loop = Loop()

    async def expire(limit: asyncio.Timeout) -> None:
        assert await anyio.to_thread.run_sync(loop.started.wait, SAFETY)
        limit.reschedule(asyncio.get_running_loop().time())

    async with asyncio.TaskGroup() as group:
        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(SAFETY) as timeout:
                group.create_task(expire(timeout))
                await in_thread(loop.run)
    assert loop.ended.is_set()


async def test_an_error_of_the_thread_wins_over_the_cancellation() -> None:
    started, cancelled = threading.Event(), threading.Event()

    def fail(checkpoint: Checkpoint) -> None:
        started.set()
        assert cancelled.wait(SAFETY)
        raise ValueError("from the thread")

    async def cancel(scope: anyio.CancelScope) -> None:
        await cancel_when(started, scope)
        cancelled.set()

    async with anyio.create_task_group() as group:
        with pytest.raises(ValueError, match="from the thread"), anyio.CancelScope() as scope:  # noqa: PT012
            group.start_soon(cancel, scope)
            await in_thread(fail)


async def test_the_event_loop_runs_while_the_thread_computes() -> None:
    """A thread that computes in Python shares the interpreter, but the loop gets its turns."""
    ticks = 0
    done = False

    async def tick() -> None:
        nonlocal ticks
        while not done:
            await anyio.sleep(0.001)
            ticks += 1

    def compute(checkpoint: Checkpoint) -> None:
        end = time.monotonic() + SAFETY
        while ticks <= 5 and time.monotonic() < end:
            sum(range(1000))

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await in_thread(compute)
        done = True
    assert ticks > 5


# -- stepping


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 255, 256, 257, 511, 512, 513, 1000])
def test_stepping(count: int) -> None:
    """A checkpoint before the first item, before every 32nd and behind the last; each item is counted once."""
    told: list[int] = []
    seen: list[int] = []
    checkpoints: list[int] = []
    for item in stepping(lambda: checkpoints.append(len(seen)), iter(range(count)), told.append):
        assert sum(told) <= len(seen), "what is counted has been dealt with"
        seen.append(item)
    assert seen == list(range(count))
    assert sum(told) == count
    assert max(told) <= 256
    assert checkpoints == [*range(0, count, 32), count]
    assert list(stepping(lambda: None, range(count))) == seen


def test_stepping_ends_where_the_checkpoint_raises() -> None:
    seen: list[int] = []
    told: list[int] = []

    def checkpoint() -> None:
        if len(seen) >= 300:
            raise LookupError

    with pytest.raises(LookupError):
        seen.extend(item for item in stepping(checkpoint, range(10_000), told.append))
    assert len(seen) == 320
    assert told == [256]


def test_drop_empties_in_parts() -> None:
    records, by_id = [*range(1300)], dict.fromkeys(range(700))
    left: list[tuple[int, int]] = []
    drop(lambda: left.append((len(records), len(by_id))), records, by_id, [])
    assert left == [(1300, 700), (788, 700), (276, 700), (0, 700), (0, 188)]
    assert not records
    assert not by_id
