"""A caller that cancels a live migration at each of its calls, by each means there is.

Before the tail nothing has changed and nothing is left behind; in the tail it completes first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncmig
from asyncmig import Options
from asyncmig.migration.journal import JournalFile
from asyncmig.migration.semantics import HARDENED, UPSTREAM, Semantics
from tests.caches import V1Cache, final_state, labels_of, migrate_with, original_state, sample_cache
from tests.clock import SAFETY
from tests.states import tree_state
from tests.stores.containerd.conftest import bridge_threads, sockets, stores_of
from tests.stores.containerd.fake import FakeContainerd

pytestmark = pytest.mark.anyio

BEFORE_THE_TAIL = [
    "Version/Version", "Leases/ListResources", "Snapshots/Stat", "Snapshots/List", "Content/Info", "Content/Read",
    "Content/List", "Leases/List",
]  # fmt: skip
IN_THE_TAIL = ["Leases/Create", "Leases/AddResource", "Snapshots/Update", "Content/Update"]
CALLS = BEFORE_THE_TAIL + IN_THE_TAIL
ROLLBACK_READS = ["Version/Version", "Snapshots/Stat", "Content/Info", "Leases/List", "Leases/ListResources"]
ROLLBACK_CHANGES = ["Snapshots/Update", "Content/Update", "Leases/Delete"]
CHANGES = {*IN_THE_TAIL, *ROLLBACK_CHANGES}
WITH_BOTH = [(HARDENED, call) for call in CALLS] + [(UPSTREAM, call) for call in CALLS if call != "Content/Read"]
"""One means of each kind is tried with both semantics; what tells the others from it has nothing to do with them."""


def name_of(value: object) -> str:
    return str(value.name if isinstance(value, Semantics) else value)


class AtCall:
    """A hook that tells of a call, and keeps it waiting until the cancellation has arrived.

    It is the first of its name; of AddResource the second, because the preflight makes one.  A call that changes something is
    answered when ``go_on`` is set, because then the cancellation has to wait for its end; any other never, unless
    ``is_answered``, so that only the cancellation ends it.
    """

    def __init__(self, fake: FakeContainerd, call: str, *, is_answered: bool = False) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.on_call: Callable[[], None] = lambda: None
        self._call = call
        self._is_answered = is_answered or call in CHANGES
        self._fake = fake
        fake.before = self

    async def __call__(self, name: str, request: Any) -> None:
        first = 2 if name == "Leases/AddResource" else 1
        if name == self._call and self._fake.calls[name] == first:
            self.begun.set()
            self.on_call()
            while not (self._is_answered and self.go_on.is_set()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def wait(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, SAFETY), "the call was not made"


async def check_outcome(call: str, fake: FakeContainerd, worker: Path, tmp_path: Path, semantics: Semantics = HARDENED) -> None:
    await check_nothing_left()
    if call in BEFORE_THE_TAIL:
        assert os.listdir(worker) == ["metadata.db"]
        assert not fake.state.leases
        assert labels_of(fake.state) == labels_of(sample_cache().in_memory())
        return
    uninterrupted = sample_cache().in_memory()
    (tmp_path / "expected").mkdir()
    sample_cache().write_metadata(tmp_path / "expected" / "metadata.db")
    await migrate_with(tmp_path / "expected", uninterrupted.stores(), semantics=semantics)
    assert final_state(fake.state, worker) == final_state(uninterrupted, tmp_path / "expected")
    assert sorted(os.listdir(worker)) == ["metadata.db", "metadata_v2.db", "metadata_v2.db.journal"]
    journal = JournalFile(str(worker / "metadata_v2.db")).read()
    assert journal is not None
    assert journal.is_complete


async def check_nothing_left() -> None:
    assert not bridge_threads()
    with anyio.fail_after(SAFETY):
        # The server is in this process; it keeps its end of a connection for a moment, and its listening socket.
        while len(sockets()) > LISTENING + EVENT_LOOPS:  # noqa: ASYNC110
            await anyio.sleep(0.01)


LISTENING = 1
EVENT_LOOPS = 6
"""Each event loop has a pair of sockets to be woken up by: the test's, the server's, and one of the test runner's."""


def migrate(fake: FakeContainerd, worker: Path, semantics: Semantics = HARDENED) -> Awaitable[object]:
    return asyncmig.migrate(worker, Options(address=str(fake.address), concurrency=2, semantics=semantics.name))


async def cancelled_at(at: AtCall, work: Callable[[], Awaitable[object]]) -> None:
    """Do the work in a scope that is cancelled at a call; the scope must get to know it."""
    with anyio.fail_after(SAFETY), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await at.wait()
                scope.cancel()
                at.go_on.set()

            group.start_soon(cancel)
            await work()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


# -- means of both backends, and of trio alone


@pytest.mark.parametrize(("semantics", "call"), WITH_BOTH, ids=name_of)
async def test_a_cancelled_scope(semantics: Semantics, call: str, fake: FakeContainerd, worker: Path, tmp_path: Path) -> None:
    await cancelled_at(AtCall(fake, call), lambda: migrate(fake, worker, semantics))
    await check_outcome(call, fake, worker, tmp_path, semantics)


@pytest.mark.parametrize("call", CALLS)
async def test_a_failing_sibling(call: str, fake: FakeContainerd, worker: Path, tmp_path: Path) -> None:
    at = AtCall(fake, call)

    async def fail() -> None:
        await at.wait()
        at.go_on.set()
        raise ValueError("sibling")

    with anyio.fail_after(SAFETY), pytest.raises(ExceptionGroup):  # noqa: PT012
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await migrate(fake, worker)
            await anyio.lowlevel.checkpoint()
    await check_outcome(call, fake, worker, tmp_path)


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_cancelled_trio_nursery(call: str, fake: FakeContainerd, worker: Path, tmp_path: Path) -> None:
    import trio  # noqa: PLC0415

    at = AtCall(fake, call)
    with trio.fail_after(SAFETY):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(migrate, fake, worker)
            await at.wait()
            nursery.cancel_scope.cancel()
            at.go_on.set()
    await check_outcome(call, fake, worker, tmp_path)


# -- asyncio's own means


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("call", CALLS)
async def test_task_cancel(call: str, times: int, fake: FakeContainerd, worker: Path, tmp_path: Path) -> None:
    at = AtCall(fake, call)
    task = asyncio.ensure_future(migrate(fake, worker))
    await at.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.01)
    at.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, SAFETY)
    await check_outcome(call, fake, worker, tmp_path)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("call", CALLS)
async def test_asyncio_timeout(call: str, fake: FakeContainerd, worker: Path, tmp_path: Path) -> None:
    at = AtCall(fake, call)
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(SAFETY) as timeout:

            def expire() -> None:
                timeout.reschedule(loop.time())
                at.go_on.set()

            at.on_call = lambda: loop.call_soon_threadsafe(expire)  # type: ignore[assignment]
            await migrate(fake, worker)
    assert at.begun.is_set()
    await check_outcome(call, fake, worker, tmp_path)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_failing_sibling_in_an_asyncio_task_group(
    call: str, fake: FakeContainerd, worker: Path, tmp_path: Path
) -> None:
    at = AtCall(fake, call)

    async def fail() -> None:
        await at.wait()
        at.go_on.set()
        raise ValueError("sibling")

    async def run() -> None:
        await migrate(fake, worker)

    with pytest.raises(ExceptionGroup):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            group.create_task(run())
            group.create_task(fail())
    await check_outcome(call, fake, worker, tmp_path)


# -- a rollback


@pytest.mark.parametrize("call", ROLLBACK_READS + ROLLBACK_CHANGES)
async def test_a_cancelled_rollback(call: str, fake: FakeContainerd, worker: Path) -> None:
    original = original_state(fake.state, worker)
    await migrate(fake, worker)
    migrated, files = final_state(fake.state, worker), tree_state(worker)
    fake.calls.clear()
    options = Options(address=str(fake.address), concurrency=2)
    await cancelled_at(AtCall(fake, call), lambda: asyncmig.rollback(worker, options))
    await check_nothing_left()
    if call in ROLLBACK_READS:
        assert final_state(fake.state, worker) == migrated
        assert tree_state(worker) == files, "the journal does not say that a rollback has begun"
    else:
        assert original_state(fake.state, worker) == original


async def test_a_rollback_that_is_cancelled_as_it_begins(
    fake: FakeContainerd, worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has noted that it begins: from then on no migration completes what an earlier one has left."""
    original = original_state(fake.state, worker)
    await migrate(fake, worker)
    note = JournalFile.note_rollback

    def note_and_cancel(file: JournalFile) -> None:
        note(file)
        anyio.from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(JournalFile, "note_rollback", note_and_cancel)
    with anyio.fail_after(SAFETY), anyio.CancelScope() as scope:
        await asyncmig.rollback(worker, Options(address=str(fake.address)))
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert original_state(fake.state, worker) == original


# -- Ctrl-C

PROGRAM = """
import anyio, asyncmig, sys
worker, address, backend = sys.argv[1:]
anyio.run(asyncmig.migrate, worker, asyncmig.Options(address=address, concurrency=2), backend=backend)
"""


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_in_a_program(call: str, fake: FakeContainerd, worker: Path, tmp_path: Path, anyio_backend: str) -> None:
    at = AtCall(fake, call)
    command = [sys.executable, "-c", PROGRAM, str(worker), str(fake.address), anyio_backend]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:

        def interrupt() -> None:
            os.kill(process.pid, signal.SIGINT)
            at.go_on.set()

        at.on_call = interrupt
        _, errors = process.communicate(timeout=SAFETY)
    assert at.begun.is_set()
    assert "KeyboardInterrupt" in errors
    anyio.run(check_outcome, call, fake, worker, tmp_path)


@contextmanager
def killed_if_it_hangs(process: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(SAFETY, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", CALLS)
def test_a_signal_to_the_command(
    call: str, number: signal.Signals, fake: FakeContainerd, worker: Path, tmp_path: Path, anyio_backend: str
) -> None:
    at = AtCall(fake, call)
    command = [sys.executable, "-m", "asyncmig", "migrate", str(worker), "--address", str(fake.address)]
    with subprocess.Popen(
        [*command, "--backend", anyio_backend], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        def interrupt() -> None:
            for _ in range(3):  # an impatient user
                os.kill(process.pid, number)

        at.on_call = interrupt
        errors = ""
        with killed_if_it_hangs(process):
            assert process.stderr is not None
            assert process.stdout is not None
            for line in process.stderr:
                errors += line
                if "past the point of no return" in line:  # it has seen them
                    at.go_on.set()
            output = process.stdout.read()
    assert at.begun.is_set()
    if call in BEFORE_THE_TAIL:
        assert process.returncode == 128 + number
        assert f"{number.name}: stopped, nothing was changed" in errors
    else:
        assert process.returncode == 0, errors
        assert output.startswith("migrated ")
        assert "past the point of no return, finishing" in errors
    anyio.run(check_outcome, call, fake, worker, tmp_path)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_event_loop_that_is_torn_down_leaves_no_connection(fake: FakeContainerd) -> None:
    """At a second Ctrl-C asyncio.run cancels every task; the one that was to close the connection may not have begun."""
    before, opened = len(sockets()), asyncio.Event()

    async def use() -> None:
        async with stores_of(fake):
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(use())
    await opened.wait()
    theirs = asyncio.all_tasks() - {task}
    task.cancel()
    await asyncio.sleep(0)
    for other in asyncio.all_tasks() - theirs:
        other.cancel()
    await asyncio.wait([task], timeout=SAFETY)
    assert task.cancelled()
    with anyio.fail_after(SAFETY):  # for the other end of it
        while len(sockets()) > before:  # noqa: ASYNC110
            await anyio.sleep(0.01)


def test_a_signal_that_is_ignored_stays_so(fake: FakeContainerd, worker: Path, anyio_backend: str) -> None:
    """``nohup asyncmig migrate ...`` goes on when the terminal goes."""
    at = AtCall(fake, "Snapshots/Stat", is_answered=True)
    program = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-m", "asyncmig", "migrate", str(worker), "--address", str(fake.address)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *command, "--backend", anyio_backend], stdout=subprocess.PIPE, text=True
    ) as process:

        def hang_up() -> None:
            os.kill(process.pid, signal.SIGHUP)
            at.go_on.set()

        at.on_call = hang_up
        output, _ = process.communicate(timeout=SAFETY)
    assert at.begun.is_set()
    assert (process.returncode, output[:9]) == (0, "migrated ")


def test_the_calls_before_the_tail_change_nothing(
    semantics: Semantics, fake: FakeContainerd, worker: Path, cache: V1Cache
) -> None:
    """The lists above are of all calls that a migration of this cache makes."""
    before = tree_state(worker)
    options = Options(address=str(fake.address), semantics=semantics.name)
    anyio.run(asyncmig.plan, worker, options)
    assert tree_state(worker) == before
    assert labels_of(fake.state) == labels_of(cache.in_memory())
    assert not fake.state.leases
    reading = set(fake.calls) - {"Introspection/Plugins"}
    calls = {call for used, call in WITH_BOTH if used is semantics}
    assert reading - {"Leases/AddResource"} == calls.intersection(BEFORE_THE_TAIL)
    anyio.run(asyncmig.migrate, worker, options)
    assert set(fake.calls) - reading - {"Introspection/Plugins"} == set(IN_THE_TAIL) - {"Leases/AddResource"}
    fake.calls.clear()
    anyio.run(asyncmig.rollback, worker, options)
    checks = {"Introspection/Plugins", "Leases/AddResource"}
    assert set(fake.calls) - checks == {*ROLLBACK_READS, *ROLLBACK_CHANGES}
