"""A server that sends what no containerd does: it costs neither memory nor time, and nobody's log."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import ListRequest
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import (
    Info,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    SnapshotsStub,
)
from asyncmig.stores.containerd.unary import LONGEST_ANSWER, UnaryProtocol
from tests.clock import SAFETY
from tests.stores.containerd.test_unary import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    OK_HEADERS,
    REPLY,
    RST_STREAM,
    Connection,
    answering,
    frame,
    prefixed,
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
        with pytest.raises(GRPCError, match="an answer of") as caught:
            await leases.list(ListRequest())
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        await until(lambda: bool(resets))
    assert resets == [stream]
    assert LONGEST_ANSWER < sent < 2 * LONGEST_ANSWER


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
        with pytest.raises(GRPCError, match="more than 10000 messages"):
            await leases.list(ListRequest())


async def test_headers_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block here is another one, and all consist of numbers of a byte."""
    protocols: list[UnaryProtocol] = []
    made = UnaryProtocol.connection_made

    def connection_made(self: UnaryProtocol, transport: Any) -> None:
        protocols.append(self)
        made(self, transport)

    monkeypatch.setattr(UnaryProtocol, "connection_made", connection_made)

    def answer(connection: Connection, stream: int) -> list[bytes]:
        if stream == 1:
            return connection.reply(stream)  # from now on these headers are numbers, too
        blocks = (bytes([0x88, *(0x81 + (number >> shift & 1) for shift in range(11))]) for number in range(2000))
        return [*(frame(HEADERS, END_HEADERS, 99, block) for block in blocks), *connection.reply(stream)]

    async with serving(answering(answer)) as leases:
        for _ in range(2):
            assert await leases.list(ListRequest()) == REPLY
        assert 0 < len(protocols[0]._seen) <= 256


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

    monkeypatch.setattr(UnaryProtocol, "_frame", fail)
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
        with pytest.raises(StreamTerminatedError, match="headers that are too long"):
            await leases.list(ListRequest())


async def test_an_answer_may_be_long() -> None:
    message = prefixed(bytes(LONGEST_ANSWER - 100))

    def answer(connection: Connection, stream: int) -> list[bytes]:
        first, _, last = connection.reply(stream)
        return [first, *(frame(DATA, 0, stream, message[i : i + 16384]) for i in range(0, len(message), 16384)), last]

    async with serving(answering(answer)) as leases:
        call: Any = leases.channel.request("/x", Cardinality.UNARY_UNARY, ListRequest, type(REPLY), timeout=SAFETY)
        async with call:
            await call.send_message(ListRequest(), end=True)
            assert len(await call._call.reply) == len(message)
