"""What grpclib makes of trouble, and what the adapter makes of that."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from asyncmig.errors import ContainerdError, ContainerdUnavailableError
from asyncmig.stores.containerd import client
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import SnapshotsStub, StatSnapshotRequest
from asyncmig.stores.containerd.channel import UndecodedReply
from asyncmig.stores.containerd.client import Client, Limits, NotFoundError, UnimplementedError
from asyncmig.stores.memory import MemoryLease, MemorySnapshot
from asyncmig.stores.ports import Kind, Lease, Protected, Resource
from tests.caches import ROOT, digest
from tests.clock import SAFETY, Clock
from tests.stores.containerd.conftest import Received, bridge_threads, stores_of
from tests.stores.containerd.fake import Drop, FakeContainerd, Hook

pytestmark = pytest.mark.anyio


def once(call: str, trouble: Callable[[], BaseException], *, at: int = 1) -> Hook:
    """A hook that raises at one call of a name, and only there."""
    seen = 0

    async def hook(name: str, request: Any) -> None:
        nonlocal seen
        seen += name == call
        if name == call and seen == at:
            raise trouble()

    return hook


# -- a connection that is lost


@pytest.mark.parametrize("call", ["Snapshots/Stat", "Content/Info", "Leases/Create", "Leases/AddResource", "Snapshots/Update"])
async def test_a_call_whose_connection_is_lost_is_made_again(call: str, fake: FakeContainerd) -> None:
    fake.before = once(call, Drop)
    async with stores_of(fake) as stores:
        assert await stores.snapshots.stat_many(["a", "nowhere"])
        assert await stores.content.info_many([digest("blob a")])
        await stores.leases.protect_many([Lease("x", {}, (Resource("content", digest("blob a")),))])
        assert await stores.snapshots.remove_label_many(["a", "b"], ROOT) == [True, True]
    assert fake.state.leases["x"].resources == {Resource("content", digest("blob a"))}
    assert fake.state.snapshots["a"].labels == {}


async def test_all_calls_on_a_lost_connection_are_made_again(fake: FakeContainerd) -> None:
    fake.before = once("Leases/AddResource", Drop, at=20)
    leases = [Lease(f"{i}", {}, (Resource("content", digest(f"{i}")),)) for i in range(60)]
    async with stores_of(fake, concurrency=16) as stores:
        made = await stores.leases.protect_many(leases)
    assert all(outcome.is_new for outcome in made)
    assert {name: lease.resources for name, lease in fake.state.leases.items()} == {
        lease.id: set(lease.resources) for lease in leases
    }


class AtPage:
    """A hook for lists of snapshots: trouble before the n-th page of the first one, or of all."""

    def __init__(self, fake: FakeContainerd, page: int, trouble: Callable[[], BaseException], *, always: bool = False) -> None:
        self._fake = fake
        self._page = page
        self._trouble = trouble
        self._always = always
        self._pages: Counter[int] = Counter()  # sent by each list
        fake.on_page = self

    async def __call__(self, name: str, request: Any) -> None:
        number = self._fake.calls[name]
        self._pages[number] += 1
        if self._pages[number] == self._page and (self._always or number == 1):
            raise self._trouble()


def many_views(fake: FakeContainerd) -> set[str]:
    fake.state.snapshots.update((f"s{i:04}", MemorySnapshot(Kind.VIEW)) for i in range(3000))
    return {name for name, item in fake.state.snapshots.items() if item.kind is Kind.VIEW}


@pytest.mark.parametrize("trouble", [Drop, lambda: GRPCError(Status.UNAVAILABLE, "going down")], ids=["lost", "going down"])
@pytest.mark.parametrize("page", [1, 2, 15])
async def test_a_list_that_is_cut_short_begins_anew(
    page: int, trouble: Callable[[], BaseException], fake: FakeContainerd
) -> None:
    expected = many_views(fake)
    AtPage(fake, page, trouble)
    async with stores_of(fake) as stores:
        views = [view.name for view in await stores.snapshots.views()]
    assert len(views) == len(expected)
    assert set(views) == expected
    assert fake.calls["Snapshots/List"] == 2


def drop_after(seconds: float, clock: Clock) -> Callable[[], Drop]:
    """A connection that is lost when so much time has gone by."""

    def trouble() -> Drop:
        clock.jump(seconds)
        return Drop()

    return trouble


async def test_a_list_that_always_breaks_at_one_place_is_given_up(fake: FakeContainerd, clock: Clock) -> None:
    many_views(fake)
    AtPage(fake, 3, drop_after(40, clock), always=True)
    async with stores_of(fake, patience=100) as stores:
        with pytest.raises(ContainerdUnavailableError, match=r"list snapshots: .*; gave up after 100 s"):
            await stores.snapshots.views()


async def test_a_list_that_gets_on_is_not_given_up(fake: FakeContainerd, clock: Clock, received: Received) -> None:
    """Each time some pages further, it takes longer than any outage may."""
    expected = many_views(fake)
    sent = 0

    async def further_each_time(name: str, request: Any) -> None:
        nonlocal sent
        number = fake.calls[name]
        pages[number] += 1
        if pages[number] == 3 * number and number < 8:
            await received.until(sent)
            raise drop_after(800, clock)()
        sent += 1

    pages: Counter[int] = Counter()
    fake.on_page = further_each_time
    async with stores_of(fake, patience=1000) as stores:
        assert {view.name for view in await stores.snapshots.views()} == expected
    assert fake.calls["Snapshots/List"] == 8


async def test_a_lost_answer_to_a_create_is_no_foreign_lease(fake: FakeContainerd) -> None:
    """The write took effect and its answer was lost: asked again, containerd says that the lease exists."""
    fake.after = once("Leases/Create", Drop)
    resource = Resource("content", digest("blob a"))
    async with stores_of(fake) as stores:
        made = await stores.leases.protect_many([Lease("x", {"l": "v"}, (resource,))])
    assert fake.calls["Leases/Create"] == 2
    assert made == [Protected(is_new=True, confirmed=False)], "new, and to be read back"
    assert fake.state.leases["x"].resources == {resource}


@pytest.mark.parametrize("call", ["Leases/AddResource", "Snapshots/Update", "Content/Update"])
async def test_other_lost_answers_do_no_harm(call: str, fake: FakeContainerd) -> None:
    fake.after = once(call, Drop)
    resource = Resource("content", digest("blob a"))
    async with stores_of(fake) as stores:
        await stores.leases.protect_many([Lease("x", {}, (resource,))])
        assert await stores.snapshots.remove_label_many(["a"], ROOT) == [True]
        assert await stores.content.remove_label_many([digest("blob a")], ROOT) == [True]
    assert fake.calls[call] == 2
    assert fake.state.leases["x"].resources == {resource}
    assert ROOT not in fake.state.snapshots["a"].labels
    assert ROOT not in fake.state.blobs[digest("blob a")].labels


@pytest.mark.parametrize("stale_socket", [True, False], ids=["refused", "no such file"])
async def test_a_server_that_comes_back_is_waited_for(stale_socket: bool, fake: FakeContainerd, clock: Clock) -> None:
    """Killed, it leaves a socket that refuses; ended in order, it removes it."""
    async with stores_of(fake) as stores:
        await stores.snapshots.stat_many(["a"])
        await anyio.to_thread.run_sync(fake.stop)
        if stale_socket:
            leave_stale_socket(fake.address)
        clock.on_pause = lambda number: fake.start() if number == 5 else None
        found = await stores.snapshots.stat_many(["a", "b"])
    assert [info and info.name for info in found] == ["a", "b"]


def leave_stale_socket(path: Path) -> None:
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))


async def test_a_server_that_stays_away_is_given_up(fake: FakeContainerd, clock: Clock) -> None:
    async with stores_of(fake, patience=100) as stores:
        await anyio.to_thread.run_sync(fake.stop)
        message = r"containerd\.sock: stat snapshot a: (cannot connect|the connection) .*; gave up after 100 s"
        with pytest.raises(ContainerdUnavailableError, match=message):
            await stores.snapshots.stat_many(["a"])
    assert not bridge_threads()


@pytest.mark.parametrize(
    "error",
    [
        GRPCError(Status.UNAVAILABLE, "transport is closing"),
        GRPCError(Status.CANCELLED, "context canceled"),
        GRPCError(Status.ABORTED, "aborted"),
        GRPCError(Status.DEADLINE_EXCEEDED, "context deadline exceeded"),
        GRPCError(Status.UNKNOWN, "database not open: unknown"),
    ],
    ids=lambda error: error.status.name,
)
async def test_a_server_that_is_going_down_is_asked_again(error: GRPCError, fake: FakeContainerd) -> None:
    fake.before = once("Snapshots/Stat", lambda: error)
    async with stores_of(fake) as stores:
        assert [info and info.name for info in await stores.snapshots.stat_many(["a"])] == ["a"]


# -- a server that is slow, or refuses


async def test_a_silent_server_is_given_up_and_its_call_is_reset(fake: FakeContainerd, clock: Clock) -> None:
    reset = threading.Event()

    async def silent(name: str, request: Any) -> None:
        if name == "Snapshots/Stat":
            clock.jump(61)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                reset.set()
                raise

    async with stores_of(fake, patience=60) as stores:
        fake.before = silent
        with pytest.raises(ContainerdUnavailableError, match=r"stat snapshot a: no answer within 60\.0 s; gave up after 60 s"):
            await stores.snapshots.stat_many(["a"])
        assert await anyio.to_thread.run_sync(reset.wait, SAFETY)


async def test_a_slow_answer_is_waited_for(fake: FakeContainerd, clock: Clock) -> None:
    async def slow(name: str, request: Any) -> None:
        clock.jump(30)

    async with stores_of(fake) as stores:
        fake.before = slow
        assert [info and info.name for info in await stores.snapshots.stat_many(["a"])] == ["a"]
    assert fake.calls["Snapshots/Stat"] == 2, "one for the sample"
    assert clock.pauses == 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.PERMISSION_DENIED, "stat snapshot a: no, no"),
        (Status.INTERNAL, "stat snapshot a: no, no"),
        (Status.UNKNOWN, "stat snapshot a: no, no"),
        (Status.UNIMPLEMENTED, "stat snapshot a: no, no; containerd >= 1.3 is needed"),
    ],
)
async def test_a_refusal_is_an_error_at_once(status: Status, message: str, fake: FakeContainerd) -> None:
    fake.before = once("Snapshots/Stat", lambda: GRPCError(status, "no, no"), at=2)
    async with stores_of(fake) as stores:
        with pytest.raises(ContainerdError, match=message):
            await stores.snapshots.stat_many(["a"])


async def test_the_first_error_ends_the_others(fake: FakeContainerd) -> None:
    fake.before = once("Leases/Create", lambda: GRPCError(Status.INTERNAL, "disk full"), at=10)
    async with stores_of(fake, concurrency=4) as stores:
        with pytest.raises(ContainerdError, match=r"create lease \d+: disk full"):
            await stores.leases.protect_many([Lease(f"{i}") for i in range(1000)])
    assert fake.calls["Leases/Create"] < 20


async def test_an_answer_that_makes_no_sense(fake: FakeContainerd, monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotResponse  # noqa: PLC0415

    monkeypatch.setattr(StatSnapshotResponse, "__bytes__", lambda self: b"\x0a\xff\xff")
    async with stores_of(fake) as stores:
        with pytest.raises(ContainerdError, match=r"stat snapshot a: .* \(\w+\)$"):
            await stores.snapshots.stat_many(["a"])


async def test_an_answer_without_content(fake: FakeContainerd, monkeypatch: pytest.MonkeyPatch) -> None:
    from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotResponse  # noqa: PLC0415

    monkeypatch.setattr(StatSnapshotResponse, "__bytes__", lambda self: b"")
    async with stores_of(fake) as stores:
        with pytest.raises(ContainerdError, match="stat snapshot a: an answer without content"):
            await stores.snapshots.stat_many(["a"])


# -- what grpclib leaves behind in a task: asyncio only


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestTasks:
    async def stat(self, client: Client, name: str = "a") -> None:
        await client.call(client.snapshots.stat, StatSnapshotRequest(snapshotter="overlayfs", key=name), name)

    @pytest.mark.parametrize("trouble", ["lost", "silent"])
    async def test_no_cancellation_stays_pending(self, trouble: str, fake: FakeContainerd, clock: Clock) -> None:
        """With ``cancelling()`` raised, TaskGroup and timeout take a later error for a cancellation (seen on Python 3.13)."""

        async def misbehave(name: str, request: Any) -> None:
            if trouble == "lost":
                raise Drop
            clock.jump(61)
            await asyncio.Event().wait()

        fake.before = misbehave
        task = asyncio.current_task()
        assert task is not None
        with Client(str(fake.address), "buildkit", Limits(call=60, outage=0)) as client:
            for _ in range(3):
                with pytest.raises(ContainerdUnavailableError):
                    await self.stat(client)
                assert task.cancelling() == 0

            async def fail() -> None:
                raise ValueError("as it is")

            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            await asyncio.sleep(0)

    async def test_a_native_cancellation_during_an_outage_is_not_lost(self, fake: FakeContainerd) -> None:
        fake.stop()
        with Client(str(fake.address), "buildkit", Limits(call=60, outage=60)) as client:
            task = asyncio.create_task(self.stat(client))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_a_scope_cancelled_while_the_connection_goes_is_not_lost(self, fake: FakeContainerd) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def hold(name: str, request: Any) -> None:
            loop.call_soon_threadsafe(begun.set)
            await asyncio.Event().wait()

        fake.before = hold
        with Client(str(fake.address), "buildkit", Limits(call=60, outage=60)) as client:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self.stat, client)
                    await begun.wait()
                    protocol = client._channel._protocol
                    assert protocol is not None
                    protocol.processor.close("cut")
                    scope.cancel()
            assert scope.cancelled_caught

    async def test_a_missing_namespace(self, fake: FakeContainerd) -> None:
        with Client(str(fake.address), "buildkit", Limits()) as client:
            unnamed = SnapshotsStub(client._channel)
            with pytest.raises(ContainerdError, match="stat a: namespace is required"):
                await client.call(unnamed.stat, StatSnapshotRequest(snapshotter="overlayfs", key="a"), "a")

    async def test_statuses_become_kinds_of_errors(self, fake: FakeContainerd) -> None:
        with Client(str(fake.address), "buildkit", Limits()) as client:
            with pytest.raises(NotFoundError):
                await self.stat(client, "nowhere")
            fake.before = once("Snapshots/Stat", lambda: GRPCError(Status.UNIMPLEMENTED, "unknown method"))
            with pytest.raises(UnimplementedError):
                await self.stat(client)

    async def test_trouble_with_a_connection_that_is_half_taken_down(self, fake: FakeContainerd) -> None:
        """grpclib then raises what it stumbles over, an AttributeError for one."""
        with Client(str(fake.address), "buildkit", Limits(outage=60)) as client:
            attempts = 0

            async def stumble(message: StatSnapshotRequest, **limit: Any) -> Any:
                nonlocal attempts
                attempts += 1
                if attempts == 1:
                    raise AttributeError("_transport")
                return await client.snapshots.stat(message, **limit)

            await self.stat(client)
            assert client._channel._protocol is not None
            client._channel._protocol.processor.close("cut")
            await client.call(stumble, StatSnapshotRequest(snapshotter="overlayfs", key="a"))
            assert attempts == 2
            attempts = 0  # now there is a connection, so it is no trouble with it
            with pytest.raises(ContainerdError, match=r"_transport \(AttributeError\)"):
                await client.call(stumble, StatSnapshotRequest(snapshotter="overlayfs", key="a"))


# -- cancellation


async def test_a_cancelled_batch_resets_its_calls_at_once(fake: FakeContainerd) -> None:
    begun, reset = threading.Event(), threading.Event()

    async def hold(name: str, request: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            reset.set()
            raise

    async with stores_of(fake) as stores:
        fake.before = hold

        async def cancel() -> None:
            await anyio.to_thread.run_sync(begun.wait)
            scope.cancel()

        with anyio.fail_after(SAFETY), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel)
                await stores.leases.protect_many([Lease(f"{i}") for i in range(100)])
        assert scope.cancelled_caught
        assert await anyio.to_thread.run_sync(reset.wait, SAFETY), "the server was told"
        fake.before = once("", Drop)
        assert await stores.leases.protect_many([Lease("after")]), "and the stores can be used again"
    assert not bridge_threads()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("how", ["cancel", "timeout", "sibling"])
async def test_native_cancellation_of_a_batch(how: str, fake: FakeContainerd) -> None:
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    async def hold(name: str, request: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.Event().wait()

    async with stores_of(fake) as stores:
        fake.before = hold

        async def batch() -> None:
            await stores.leases.protect_many([Lease(f"{i}") for i in range(100)])

        async def fail() -> None:
            await begun.wait()
            raise ValueError("sibling")

        async def cancel_it() -> None:
            task = asyncio.create_task(batch())
            await begun.wait()
            task.cancel()
            await task

        async def time_out() -> None:
            async with asyncio.timeout(SAFETY) as timeout, asyncio.TaskGroup() as group:
                group.create_task(expire(timeout))
                await batch()

        async def expire(limit: asyncio.Timeout) -> None:
            await begun.wait()
            limit.reschedule(0)

        async def with_sibling() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(batch())
                group.create_task(fail())

        ways: dict[str, tuple[Callable[[], Awaitable[None]], type[BaseException]]] = {
            "cancel": (cancel_it, asyncio.CancelledError),
            "timeout": (time_out, TimeoutError),
            "sibling": (with_sibling, ExceptionGroup),
        }
        function, expected = ways[how]
        with anyio.fail_after(SAFETY), pytest.raises(expected):
            await function()


async def test_an_error_crosses_as_it_is(fake: FakeContainerd) -> None:
    fake.before = once("Leases/Create", lambda: GRPCError(Status.INTERNAL, "disk full"))
    async with stores_of(fake) as stores:
        with pytest.raises(ContainerdError) as caught:
            await stores.leases.protect_many([Lease("x")])
    assert (caught.value.address, caught.value.call, caught.value.cause) == (str(fake.address), "create lease x", "disk full")


async def test_long_answers_are_decoded_in_a_worker_thread(fake: FakeContainerd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of thousands of leases come as one message, whose decoding takes seconds."""
    threads: list[threading.Thread] = []
    loops: list[threading.Thread] = []
    decode, decoded = UndecodedReply.decode, client._decoded

    def noted(reply: UndecodedReply) -> Any:
        threads.append(threading.current_thread())
        return decode(reply)

    async def noting_loop(reply: Any) -> Any:
        loops.append(threading.current_thread())
        return await decoded(reply)

    monkeypatch.setattr(UndecodedReply, "decode", noted)
    monkeypatch.setattr(client, "_decoded", noting_loop)
    fake.state.leases.update((f"{i:06}", MemoryLease({"containerd.io/gc.flat": "2020"})) for i in range(2000))
    async with stores_of(fake) as stores:
        found = await stores.leases.list_many([f"{i:06}" for i in range(0, 2000, 100)])
    assert all(found)
    assert len(threads) == 1
    assert threads[0] not in loops
