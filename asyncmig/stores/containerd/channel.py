"""grpclib's channel, with limits to what a server may do to it.

grpclib keeps what arrives until somebody reads it, waits for what was announced, and ends a connection for what it does not
expect.  That is fit for servers that mean well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from grpclib.client import Channel
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.protocol import Buffer, Connection, H2Protocol, Stream

from asyncmig.stores.containerd import messages
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import UpdateResponse
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import CreateResponse
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import UpdateSnapshotResponse

LONGEST_MESSAGE = 32 << 20
"""Bytes of a message.  containerd sends 16 MiB at most."""
_DECODED_IN_PLACE = 4 * 1024
"""Bytes of a reply from which on it is not decoded on the event loop: about a millisecond's worth."""

_IGNORED = (CreateResponse, UpdateResponse, UpdateSnapshotResponse)


class UndecodedReply:
    """A reply that is too long to be decoded on the event loop."""

    def __init__(self, data: bytes, message_type: Any) -> None:
        self._data = data
        self._message_type = message_type

    def decode(self) -> Any:
        """Decode it; in a worker thread."""
        return messages.decode(self._data, self._message_type)


class _Codec(CodecBase):
    """protobuf, without decoding what nobody looks at: replies that repeat the request, and long ones for the moment."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        if message_type in _IGNORED:
            return message_type()
        if len(data) > _DECODED_IN_PLACE:
            return UndecodedReply(data, message_type)
        return messages.decode(data, message_type)


class ContainerdChannel(Channel):
    """A channel to a unix socket.  It connects at the first call, and again after a connection was lost."""

    def __init__(self, path: str) -> None:
        super().__init__(path=path, codec=_Codec())
        self._latest: H2Protocol | None = None

    @property
    def is_broken(self) -> bool:
        """Whether the connection has ended and was not remade yet."""
        return self._latest is not None and self._latest.handler.connection_lost  # type: ignore[attr-defined]

    def _protocol_factory(self) -> H2Protocol:
        """The only private name of grpclib here.  Without it there would be calls, but no limits."""
        plain = super()._protocol_factory()
        self._latest = _Protocol(plain.handler, plain.config, plain.h2_config)
        return self._latest


class _Protocol(H2Protocol):
    """Joins writes, and bears what servers may send and grpclib does not expect."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_JoinedWrites(transport))  # type: ignore[arg-type]
        self.processor.processors = _Processors(self.processor.processors)  # type: ignore[assignment, arg-type]
        self.connection.create_stream = partial(_bounded, self.connection.create_stream)  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        """An error that gets out of here would end the connection, too, but by way of the log of asyncio."""
        try:
            super().data_received(data)
        except Exception as error:
            self.processor.close(f"Protocol error: {type(error).__name__}: {error}")


class _Processors(dict[type, Callable[[Any], None]]):
    """By kind of event, what grpclib does about it; about others, nothing.

    It raises for what it does not know: frames of unknown kinds and interim answers, for example, which HTTP/2 has clients
    ignore.
    """

    def __missing__(self, event: type) -> Callable[[Any], None]:
        return lambda _: None


def _bounded(create_stream: Callable[..., Stream], **options: Any) -> Stream:
    stream = create_stream(**options)
    stream.__class__ = _BoundedStream  # grpclib has no way to choose the class
    return stream


class _BoundedStream(Stream):
    """Takes one answer, and does not wait for what no server sends."""

    _is_terminated = False

    def __terminated__(self, reason: str) -> None:
        """The first reason is the one: that the connection is lost comes behind each of the others."""
        if not self._is_terminated:
            self._is_terminated = True
            super().__terminated__(reason)

    def init_stream(self, stream_id: int, connection: Connection) -> None:
        super().init_stream(stream_id, connection)
        self.buffer = _BoundedBuffer(partial(connection.ack, stream_id))

    async def recv_trailers(self) -> list[tuple[str, str]]:
        """grpclib would wait for trailers for ever, after more data than it has read, and after the end of the stream."""
        if await self.recv_data(1):
            raise GRPCError(Status.INTERNAL, "an answer of more than one message")
        if self.trailers is None:
            raise GRPCError(Status.UNKNOWN, "an answer without a status")
        return self.trailers


class _BoundedBuffer(Buffer):
    """What has arrived and was not read, as one piece.

    grpclib's keeps each frame by itself, which takes a hundred times the memory of frames of a byte, and takes one without any
    for the end.
    """

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._acknowledge = acknowledge
        self._data = bytearray()
        self._size_to_acknowledge = 0
        self._has_ended = False
        self._news = asyncio.Event()

    def add(self, data: bytes, ack_size: int) -> None:
        self._data += data
        self._size_to_acknowledge += ack_size
        self._news.set()

    def eof(self) -> None:
        self._has_ended = True
        self._news.set()

    def unacked_size(self) -> int:
        size, self._size_to_acknowledge = self._size_to_acknowledge, 0
        return size

    async def read(self, size: int) -> bytes:
        """So many bytes; fewer only if there are none at all any more."""
        if size > LONGEST_MESSAGE:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"an answer of {size} bytes; at most {LONGEST_MESSAGE} are taken")
        while len(self._data) < size and not self._has_ended:
            self._acknowledge(self.unacked_size())
            self._news.clear()
            await self._news.wait()
        self._acknowledge(self.unacked_size())
        if 0 < len(self._data) < size:
            raise GRPCError(Status.INTERNAL, "an answer that ends within a message")
        found = bytes(self._data[:size])
        del self._data[:size]
        return found


class _JoinedWrites:
    """A transport that sends what one turn of the event loop writes as one piece.

    grpclib writes each frame by itself, two a call; with many calls at a time that is as many system calls here and as many
    wake-ups in containerd, which spends half its time on them.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
