"""A server that sends what no containerd does: it costs neither memory nor time, and nobody's log."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import Connection as GrpclibConnection

from asyncmig.errors import ContainerdError
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import ListRequest
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import (
    Info,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    SnapshotsStub,
)
from asyncmig.stores.containerd.channel import LONGEST_MESSAGE, _BoundedBuffer
from asyncmig.stores.containerd.client import Client, Limits
from asyncmig.stores.containerd.content import ContainerdContent
from asyncmig.stores.fanout import no_progress
from asyncmig.stores.ports import ContentInfo
from tests.stores.containerd.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    OK_HEADERS,
    RST_STREAM,
    Connection,
    answering,
    frame,
    serving,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

SNAPSHOTS = ListSnapshotsResponse(info=[Info(name="a")])
CHUNK = bytes(16384)


@pytest.fixture
async def logged() -> list[Any]:
    """What asyncio would have logged, because nobody else looked at it."""
    contexts: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


async def test_an_answer_without_an_end_is_refused() -> None:
    sent, resets = 0, []
    stream = 1

    async def script(connection: Connection) -> None:
        nonlocal sent
        async for kind, _, _, _ in connection.frames():
            if kind == DATA:
                break
        connection.send(frame(HEADERS, END_HEADERS, stream, connection.block(OK_HEADERS)))
        reading = asyncio.ensure_future(_first_reset(connection))
        while not reading.done():
            connection.send(frame(DATA, 0, stream, CHUNK))
            sent += len(CHUNK)
            await connection._writer.drain()
        resets.append(await reading)

    async with serving(script) as leases:
        with pytest.raises(GRPCError, match="an answer of more than one message"):
            await leases.list(ListRequest())
        await until(lambda: bool(resets))
    assert resets == [stream]
    assert 0 < sent < LONGEST_MESSAGE


async def _first_reset(connection: Connection) -> int:
    while True:
        length_and_kind, _, stream = struct.unpack(">IBI", await connection._reader.readexactly(9))
        await connection._reader.readexactly(length_and_kind >> 8)
        if length_and_kind & 0xFF == RST_STREAM:
            return int(stream)


async def test_a_message_of_gigabytes_in_a_list_is_not_waited_for() -> None:
    async def script(connection: Connection) -> None:
        async for stream, _, _ in connection.requests():
            first = frame(HEADERS, END_HEADERS, stream, connection.block(OK_HEADERS))
            connection.send(first, frame(DATA, 0, stream, b"\0\xff\xff\xff\xff" + CHUNK[:100]))

    async with serving(script) as leases:
        with pytest.raises(GRPCError, match="an answer of 4294967295 bytes") as caught:
            _ = [reply async for reply in SnapshotsStub(leases.channel).list(ListSnapshotsRequest())]
        assert caught.value.status is Status.RESOURCE_EXHAUSTED


async def test_an_answer_of_very_many_messages_is_refused() -> None:
    def answer(connection: Connection, stream: int) -> list[bytes]:
        first, _, last = connection.reply(stream)
        return [first, *([frame(DATA, 0, stream, bytes(16000))] * 10), last]

    async with serving(answering(answer)) as leases:
        with pytest.raises(GRPCError, match="more than one message"):
            await leases.list(ListRequest())


UNEXPECTED = {
    "a frame of an unknown kind": lambda c, stream: frame(0x42, 0, stream, b"?"),
    "an interim answer": lambda c, stream: frame(HEADERS, END_HEADERS, stream, c.block([(":status", "103")])),
    "another service": lambda c, stream: frame(0xA, 0, 0, b"\0\x01ah2=x"),
}


@pytest.mark.parametrize("what", UNEXPECTED)
async def test_what_clients_are_to_ignore(what: str, logged: list[Any]) -> None:
    async def script(connection: Connection) -> None:
        async for stream, _, _ in connection.requests():
            connection.send(UNEXPECTED[what](connection, stream), *connection.reply(stream, bytes(SNAPSHOTS)))

    async with serving(script) as leases:
        assert [reply async for reply in SnapshotsStub(leases.channel).list(ListSnapshotsRequest())] == [SNAPSHOTS]
    assert logged == []


async def test_an_unforeseen_error_ends_the_connection_and_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(GrpclibConnection, "feed", fail)
    async with serving(answering(Connection.reply)) as leases:
        with pytest.raises(StreamTerminatedError, match="nobody thought of this"):
            await leases.list(ListRequest())
    assert logged == []


async def test_headers_without_an_end_end_in_time() -> None:
    async def script(connection: Connection) -> None:
        async for stream, _, _ in connection.requests():
            connection.send(frame(HEADERS, END_STREAM, stream, connection.block(OK_HEADERS)))
            connection.send(frame(CONTINUATION, 0, stream) * 50_000)
            connection.send(frame(CONTINUATION, 0, stream, b"\x81") * 70_000)

    async with serving(script) as leases:
        with pytest.raises(StreamTerminatedError, match="Protocol error"):
            await leases.list(ListRequest())


async def test_a_message_may_be_long_and_come_in_any_pieces() -> None:
    acknowledged: list[int] = []
    buffer = _BoundedBuffer(acknowledged.append)
    reading = asyncio.ensure_future(buffer.read(LONGEST_MESSAGE))
    for size in (1, 2**20, 5, LONGEST_MESSAGE - 2**20):
        buffer.add(bytes(size), size + 1)
        buffer.add(b"", 0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await reading == bytes(LONGEST_MESSAGE)
    assert await buffer.read(6) == bytes(6)
    assert sum(acknowledged) == LONGEST_MESSAGE + 6 + 4
    buffer.eof()
    assert await buffer.read(1) == b""
    with pytest.raises(GRPCError, match="an answer of"):
        await buffer.read(LONGEST_MESSAGE + 1)


async def test_frames_of_a_byte_take_no_more_memory_than_their_bytes() -> None:
    buffer = _BoundedBuffer(lambda _: None)
    tracemalloc.start()
    try:
        for _ in range(200_000):
            buffer.add(b"x", 1)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


async def test_an_answer_to_read_without_an_end_is_refused() -> None:
    """Of messages with nothing in them, which would never be more than was asked for."""

    async def script(connection: Connection) -> None:
        async for kind, _, stream, _ in connection.frames():
            if kind == DATA:
                first = frame(HEADERS, END_HEADERS, stream, connection.block(OK_HEADERS))
                connection.send(first, *[frame(DATA, 0, stream, bytes(16_000))] * 4)

    async with serving(script) as leases:
        with Client(str(leases.channel._path), "buildkit", Limits()) as client:
            content = ContainerdContent(_Here(), client, 1, no_progress)
            with pytest.raises(ContainerdError, match="read blob sha256:0: more than was asked for"):
                await content.head_many([ContentInfo("sha256:0", 10, None)])


class _Here:
    async def run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        return await function()
