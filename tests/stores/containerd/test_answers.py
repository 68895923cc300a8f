"""What servers may answer to a call, and what it becomes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from asyncmig.errors import ContainerdError
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import (
    ContentStub,
    ReadContentRequest,
    ReadContentResponse,
)
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import Lease, LeasesStub, ListRequest, ListResponse
from asyncmig.stores.containerd.client import Client, Limits
from asyncmig.stores.memory import MemoryLease
from tests.stores.containerd.conftest import stores_of
from tests.stores.containerd.fake import FakeContainerd
from tests.stores.containerd.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OK_HEADERS,
    OK_TRAILERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    REPLY,
    RST_STREAM,
    WINDOW_UPDATE,
    Connection,
    answering,
    frame,
    prefixed,
    serving,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

# -- answers


async def test_an_answer_that_comes_byte_by_byte() -> None:
    async def script(connection: Connection) -> None:
        async for stream, _, _ in connection.requests():
            for byte in b"".join(connection.reply(stream)):
                connection.send(bytes([byte]))
                await asyncio.sleep(0)

    async with serving(script) as leases:
        assert [await leases.list(ListRequest()) for _ in range(2)] == [REPLY, REPLY]


async def test_answers_to_many_calls_in_any_order() -> None:
    async def script(connection: Connection) -> None:
        asked: list[tuple[int, bytes]] = []
        async for stream, _, message in connection.requests():
            asked.append((stream, bytes(ListResponse(leases=[Lease(id=ListRequest.FromString(message).filters[0])]))))
            if len(asked) == 10:
                for number, reply in reversed(asked):
                    connection.send(*connection.reply(number, reply))
                asked.clear()

    async with serving(script) as leases:
        for _ in range(3):
            found = await asyncio.gather(*(leases.list(ListRequest(filters=[f"{i}"])) for i in range(10)))
            assert [reply.leases[0].id for reply in found] == [f"{i}" for i in range(10)]


def in_pieces(connection: Connection, stream: int) -> list[bytes]:
    message = prefixed(bytes(REPLY))
    return [
        *(frame(DATA, 0, stream, message[i : i + 1]) for i in range(len(message))),
        frame(DATA, 0, stream),
    ]


def padded(connection: Connection, stream: int) -> list[bytes]:
    return [frame(DATA, PADDED, stream, b"\3" + prefixed(bytes(REPLY)) + bytes(3))]


@pytest.mark.parametrize("body", [in_pieces, padded])
async def test_data_in_other_forms(body: Callable[[Connection, int], list[bytes]]) -> None:
    def answer(connection: Connection, stream: int) -> list[bytes]:
        first, _, last = connection.reply(stream)
        return [first, *body(connection, stream), last]

    async with serving(answering(answer)) as leases:
        assert await leases.list(ListRequest()) == REPLY


async def test_headers_in_other_forms() -> None:
    def answer(connection: Connection, stream: int) -> list[bytes]:
        first, last = connection.block(OK_HEADERS), connection.block([*OK_TRAILERS, ("x", 20_000 * "x")])
        return [
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, stream, b"\2" + bytes(5) + first + bytes(2)),
            frame(DATA, 0, stream, prefixed(bytes(REPLY))),
            frame(HEADERS, END_STREAM, stream, last[:100]),
            frame(CONTINUATION, 0, stream, last[100:10_000]),
            frame(CONTINUATION, END_HEADERS, stream, last[10_000:]),
        ]

    async with serving(answering(answer)) as leases:
        assert [await leases.list(ListRequest()) for _ in range(2)] == [REPLY, REPLY]


async def test_frames_of_other_kinds() -> None:
    pongs: list[bytes] = []

    async def script(connection: Connection) -> None:
        async for kind, flags, stream, body in connection.frames():
            if kind == DATA:
                first, *others = connection.reply(stream)
                window = frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1000))
                connection.send(first, frame(PING, 0, 0, b"12345678"), window, frame(2, 0, stream, bytes(5)))
                connection.send(frame(250, 0, stream, b"?"), *others)
            elif kind == PING:
                assert flags == 1
                pongs.append(body)

    async with serving(script) as leases:
        for _ in range(3):
            assert await leases.list(ListRequest()) == REPLY
        await until(lambda: len(pongs) == 3)
    assert set(pongs) == {b"12345678"}


REFUSALS = {
    "trailers only": ([*OK_HEADERS, ("grpc-status", "5"), ("grpc-message", "no caf%C3%A9")], Status.NOT_FOUND, "no café"),
    "no message": ([*OK_HEADERS, ("grpc-status", "13")], Status.INTERNAL, None),
    "not 200": ([(":status", "503")], Status.UNAVAILABLE, "Received :status = '503'"),
    "not gRPC": ([(":status", "200"), ("content-type", "text/html")], Status.UNKNOWN, "Invalid content-type: 'text/html'"),
    "no status": (OK_HEADERS, Status.UNKNOWN, "an answer without a status"),
    "bad status": ([*OK_HEADERS, ("grpc-status", "x")], Status.UNKNOWN, "Invalid grpc-status: 'x'"),
    "unknown status": ([*OK_HEADERS, ("grpc-status", "77")], Status.UNKNOWN, "Invalid grpc-status: '77'"),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_refusals(what: str) -> None:
    headers, status, message = REFUSALS[what]

    def answer(connection: Connection, stream: int) -> list[bytes]:
        return [frame(HEADERS, END_HEADERS | END_STREAM, stream, connection.block(headers))]

    async with serving(answering(answer)) as leases:
        for _ in range(2):
            with pytest.raises(GRPCError) as caught:
                await leases.list(ListRequest())
            assert (caught.value.status, caught.value.message) == (status, message)


BODIES = {
    "compressed": (prefixed(bytes(REPLY), compressed=1), "Compression not implemented"),
    "two messages": (prefixed(bytes(REPLY)) * 2, "an answer of more than one message"),
    "cut short": (prefixed(bytes(REPLY))[:-1], "an answer that ends within a message"),
    "cut short behind its length": (prefixed(bytes(REPLY))[:5], "an answer without a whole message"),
    "less than a prefix": (b"\0\0", "an answer that ends within a message"),
    "nothing": (b"", "an answer without a whole message"),
}


@pytest.mark.parametrize("what", BODIES)
async def test_answers_that_are_not_one_message(what: str) -> None:
    body, message = BODIES[what]

    def answer(connection: Connection, stream: int) -> list[bytes]:
        first, _, last = connection.reply(stream)
        return [first, frame(DATA, 0, stream, body), last]

    async with serving(answering(answer)) as leases:
        client = Client(str(leases.channel._path), "buildkit", Limits(outage=0))
        with client, pytest.raises(ContainerdError, match=message):
            await client.call(client.leases.list, ListRequest())


async def test_data_that_ends_without_trailers() -> None:
    def answer(connection: Connection, stream: int) -> list[bytes]:
        return [connection.reply(stream)[0], frame(DATA, END_STREAM, stream, prefixed(bytes(REPLY)))]

    async with serving(answering(answer)) as leases:
        with pytest.raises(GRPCError, match="an answer without a status"):
            await leases.list(ListRequest())


async def test_an_answer_of_several_messages() -> None:
    pieces = [ReadContentResponse(offset=i, data=b"abc"[i : i + 1]) for i in range(3)]

    def answer(connection: Connection, stream: int) -> list[bytes]:
        first, _, last = connection.reply(stream)
        return [first, *(frame(DATA, 0, stream, prefixed(bytes(piece))) for piece in pieces), last]

    async with serving(answering(answer)) as leases:
        read = ContentStub(leases.channel).read
        assert [reply async for reply in read(ReadContentRequest(digest="d", size=3))] == pieces
        pieces.clear()
        assert [reply async for reply in read(ReadContentRequest(digest="d", size=3))] == []


# -- ends


async def test_a_reset_ends_its_call_only() -> None:
    def answer(connection: Connection, stream: int) -> list[bytes]:
        if stream == 1:
            return [frame(RST_STREAM, 0, stream, struct.pack(">I", 7))]
        return connection.reply(stream)

    async with serving(answering(answer)) as leases:
        first, second = await asyncio.gather(*(leases.list(ListRequest()) for _ in range(2)), return_exceptions=True)
        assert isinstance(first, StreamTerminatedError)
        assert second == REPLY


async def test_goaway_ends_the_connection_and_the_next_call_makes_another() -> None:
    connections = 0

    async def script(connection: Connection) -> None:
        nonlocal connections
        connections += 1
        async for stream, _, _ in connection.requests():
            if connections == 1:
                connection.send(frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
                await asyncio.sleep(0.1)  # the client ends the connection
                return
            connection.send(*connection.reply(stream))

    async with serving(script) as leases:
        ended = await asyncio.gather(*(leases.list(ListRequest()) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, StreamTerminatedError) for error in ended)
        assert await leases.list(ListRequest()) == REPLY
    assert connections == 2


NONSENSE: dict[str, Callable[[Connection], bytes]] = {
    "a frame that is too long": lambda _: frame(DATA, 0, 1, bytes(20_000)),
    "a promise": lambda _: frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
    "headers without an end": lambda c: frame(HEADERS, 0, 1, c.block(OK_HEADERS)) + frame(DATA, 0, 1, b"x"),
    "headers of two streams": lambda c: frame(HEADERS, 0, 1, c.block(OK_HEADERS)) + frame(CONTINUATION, 4, 3, b""),
    "headers without a beginning": lambda _: frame(CONTINUATION, END_HEADERS, 1, b""),
    "headers without end": lambda _: frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 70,
    "headers that can't be decoded": lambda _: frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
    "padding only": lambda _: frame(DATA, PADDED, 1, b"\x09abc"),
    "padding without its length": lambda _: frame(DATA, PADDED, 1),
    "a reset without a reason": lambda _: frame(RST_STREAM, 0, 1),
    "a window that is too large": lambda _: frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_ends_the_connection(what: str) -> None:
    async with serving(answering(lambda connection, _: [NONSENSE[what](connection)])) as leases:
        with pytest.raises(StreamTerminatedError, match="Protocol error"):
            await leases.list(ListRequest())


async def test_a_cancelled_call_is_reset_and_its_late_answer_does_no_harm() -> None:
    """The answer's headers change the table that later headers refer to."""
    waiting, reset = asyncio.Event(), asyncio.Event()

    async def script(connection: Connection) -> None:
        streams: list[int] = []
        async for kind, _, stream, _ in connection.frames():
            if kind == RST_STREAM:
                assert stream == streams[0]
                reset.set()
            elif kind == DATA:
                streams.append(stream)
                waiting.set()
                if len(streams) > 1:
                    late = connection.reply(streams[0]) if len(streams) == 2 else []
                    connection.send(*late, *connection.reply(stream))

    async with serving(script) as leases:
        task = asyncio.create_task(leases.list(ListRequest()))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await reset.wait()
        assert [await leases.list(ListRequest()) for _ in range(2)] == [REPLY, REPLY]


async def test_only_the_call_that_is_late_times_out() -> None:
    reset: list[int] = []

    async def script(connection: Connection) -> None:
        async for kind, _, stream, _ in connection.frames():
            if kind == RST_STREAM:
                reset.append(stream)
            elif kind == DATA and stream == 3:
                asyncio.get_running_loop().call_later(0.2, lambda: connection.send(*connection.reply(3)))

    async with serving(script) as leases:
        calls = [_within(timeout, leases) for timeout in (0.1, 5, 0.05)]
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, TimeoutError)
        assert second == REPLY
        assert isinstance(third, TimeoutError)
        await until(lambda: len(reset) == 2)
    assert sorted(reset) == [1, 5]


async def _within(seconds: float, leases: LeasesStub) -> ListResponse:
    with anyio.fail_after(seconds):
        return await leases.list(ListRequest())


# -- flow of long answers, and of many


async def test_answers_longer_than_the_window(fake: FakeContainerd) -> None:
    """10 MB as one message; the fake server, grpclib's own, sends no more than the windows of stream and connection allow."""
    fake.state.leases.update((f"{i:03}", MemoryLease({"l": 100_000 * "x"})) for i in range(100))
    async with stores_of(fake) as stores:
        for _ in range(2):
            assert len(await stores.leases.list_all()) == 100


async def test_the_window_of_the_connection_is_given_back_for_cancelled_calls() -> None:
    """Else it would be shut for ever after some megabytes."""
    given_back = 0

    async def script(connection: Connection) -> None:
        nonlocal given_back
        async for kind, _, stream, body in connection.frames():
            if kind == WINDOW_UPDATE and stream == 0:
                given_back += struct.unpack(">I", body)[0]
            elif kind == RST_STREAM:
                connection.send(*(frame(DATA, 0, stream, bytes(16_000)) for _ in range(200)))

    async with serving(script) as leases:
        for _ in range(2):
            with anyio.move_on_after(0.05):
                await leases.list(ListRequest())
        before = 4 * 2**20 - 65_535  # given in the beginning
        await until(lambda: given_back - before > 2 * 2**20)


# -- limits of the server


async def test_no_more_calls_at_a_time_than_the_server_takes() -> None:
    open_calls = most = 0

    async def script(connection: Connection) -> None:
        nonlocal open_calls, most

        async def answer(stream: int) -> None:
            nonlocal open_calls
            await asyncio.sleep(0.01)
            open_calls -= 1
            connection.send(*connection.reply(stream))

        async for stream, _, _ in connection.requests():
            open_calls += 1
            most = max(most, open_calls)
            answers.append(asyncio.create_task(answer(stream)))

    answers: list[asyncio.Task[None]] = []
    async with serving(script, settings=struct.pack(">HI", 3, 2)) as leases:
        await leases.list(ListRequest())  # then the settings have come
        assert await asyncio.gather(*(leases.list(ListRequest()) for _ in range(20))) == 20 * [REPLY]
    assert most == 2


async def test_requests_longer_than_a_frame_and_than_the_window(fake: FakeContainerd) -> None:
    with Client(str(fake.address), "buildkit", Limits()) as client:
        fake.state.leases["x"] = MemoryLease({})
        for length in (16_000, 17_000, 100_000):
            request = ListRequest(filters=['id=="x"', f'id=="{length * "y"}"'])
            assert [lease.id for lease in (await client.call(client.leases.list, request)).leases] == ["x"]


async def test_a_window_that_is_shut() -> None:
    """A server that gives no window for more than it takes at once."""
    async with serving(answering(Connection.reply), settings=struct.pack(">HI", 4, 10)) as leases:
        await leases.list(ListRequest())
        assert await leases.list(ListRequest(filters=["1"])) == REPLY
        with anyio.move_on_after(0.1) as scope:
            await leases.list(ListRequest(filters=["123456789"]))
        assert scope.cancelled_caught
