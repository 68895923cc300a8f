"""A grpclib channel that is fit for very many small calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import anyio
from grpclib.client import Channel, Handler
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol, Stream

from asyncmig.stores.containerd import messages
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import ReadContentRequest, UpdateResponse
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import CreateResponse
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import UpdateSnapshotResponse
from asyncmig.stores.containerd.unary import (
    LONGEST_ANSWER,
    Headers,
    PendingCall,
    UnaryProtocol,
    messages_in,
    request_headers,
    too_large,
)

_DECODED_IN_PLACE = 32 * 1024
"""Bytes of a reply from which on it is not decoded on the event loop: about four milliseconds' worth."""

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
    """protobuf, without decoding what nobody looks at: replies that repeat the request, and very long ones for the moment."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return messages.encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        if message_type in _IGNORED:
            return message_type()
        if len(data) > _DECODED_IN_PLACE:
            return UndecodedReply(data, message_type)
        return messages.decode(data, message_type)


class _JoinedProtocol(H2Protocol):
    """Joins writes, and bears what servers may send and grpclib does not expect."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_JoinedWrites(transport))  # type: ignore[arg-type]
        self.processor.processors = _Processors(self.processor.processors)  # type: ignore[assignment, arg-type]
        self.connection.create_stream = self._create_stream  # type: ignore[method-assign]

    def _create_stream(self, *, stream_id: int | None = None, wrapper: Any = None) -> Stream:
        connection = self.connection
        return _BoundedStream(connection, connection._connection, connection._transport, stream_id=stream_id, wrapper=wrapper)

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


class _BoundedStream(Stream):
    """Does not wait for messages that no server sends, and which would be kept in memory until they are complete."""

    async def recv_data(self, size: int) -> bytes:
        if size > LONGEST_ANSWER:
            raise too_large(size)
        return await super().recv_data(size)


class _JoinedUnaryProtocol(_JoinedProtocol, UnaryProtocol):
    """The writes are joined before :class:`UnaryProtocol` gets the transport."""


class _StreamChannel(Channel):
    """grpclib's channel as it is, but for joined writes."""

    def _protocol_factory(self) -> H2Protocol:
        return _JoinedProtocol(Handler(), self._config, self._h2_config)


class ContainerdChannel(Channel):
    """A channel to a unix socket.  It connects at the first call, and again after a connection was lost.

    Calls with one request and a short answer have a connection of their own (:mod:`asyncmig.stores.containerd.unary`): all that
    have one reply, and Read, which is asked here for some kilobytes only.  Lists, and what that connection does not take just
    now, go grpclib's way on another one.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path=path, codec=_Codec())
        self.streams = _StreamChannel(path=path, codec=self._codec)

    @property
    def is_broken(self) -> bool:
        """Whether a connection has ended that was not remade yet."""
        return any(
            channel._protocol is not None and channel._protocol.handler.connection_lost  # type: ignore[attr-defined]
            for channel in (self, self.streams)
        )

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self.streams.close()

    def _protocol_factory(self) -> H2Protocol:
        return _JoinedUnaryProtocol(Handler(), self._config, self._h2_config)

    def request(
        self, name: str, cardinality: Cardinality, request_type: Any, reply_type: Any, *, metadata: Any = None, **limits: Any
    ) -> Any:
        """A call, to be entered."""
        has_short_answer = cardinality is Cardinality.UNARY_UNARY or request_type is ReadContentRequest
        if has_short_answer and limits.get("deadline") is None:
            return _ShortCall(self, name, cardinality, reply_type, metadata, limits.get("timeout"))
        return self.streams.request(name, cardinality, request_type, reply_type, metadata=metadata, **limits)


class _ShortCall:
    """A call in the way of grpclib's ``Stream``, as far as the stubs use it for one request and a short answer."""

    __slots__ = ("_call", "_cardinality", "_channel", "_metadata", "_protocol", "_replies", "_reply_type", "_route", "_timeout")

    def __init__(
        self,
        channel: ContainerdChannel,
        route: str,
        cardinality: Cardinality,
        reply_type: Any,
        metadata: Any,
        timeout: float | None,
    ) -> None:
        self._channel = channel
        self._route = route
        self._cardinality = cardinality
        self._reply_type = reply_type
        self._metadata = metadata
        self._timeout = timeout
        self._call: PendingCall | None = None
        self._replies: Iterator[Any] | None = None

    async def __aenter__(self) -> _ShortCall:
        return self

    async def send_message(self, message: Any, *, end: bool) -> None:
        """Send the request, the only one."""
        data = self._channel._codec.encode(message, None)
        protocol = self._channel._protocol
        if protocol is None or protocol.handler.connection_lost or not self._start(protocol, data):  # type: ignore[attr-defined]
            with anyio.fail_after(self._timeout):
                if not self._start(await self._channel.__connect__(), data):
                    self._replies = iter(await self._in_grpclib_s_way(message))

    def _start(self, protocol: H2Protocol, data: bytes) -> bool:
        assert isinstance(protocol, UnaryProtocol)
        self._protocol = protocol
        key = (self._route, *self._metadata.items()) if self._metadata else self._route
        self._call = protocol.start(self._headers, key, data, self._timeout)
        return self._call is not None

    def _headers(self) -> Headers:
        channel, metadata = self._channel, tuple(self._metadata.items()) if self._metadata else ()
        return request_headers(channel._scheme, channel._authority, self._route, metadata)

    async def _in_grpclib_s_way(self, message: Any) -> list[Any]:
        async with self._channel.streams.request(
            self._route, self._cardinality, type(message), self._reply_type, metadata=self._metadata
        ) as stream:
            await stream.send_message(message, end=True)
            if self._cardinality is Cardinality.UNARY_UNARY:
                return [await stream.recv_message()]
            return [reply async for reply in stream]

    async def recv_message(self) -> Any:
        """The reply, or the next one; ``None`` if there is no more."""
        if self._replies is None:
            assert self._call is not None
            found = messages_in(await self._call.reply)
            if self._cardinality is Cardinality.UNARY_UNARY and len(found) != 1:
                raise GRPCError(Status.INTERNAL, f"{len(found)} messages where one was to be")
            self._replies = map(self._decode, found)
        return next(self._replies, None)

    def _decode(self, data: bytes) -> Any:
        return self._channel._codec.decode(data, self._reply_type)

    def __aiter__(self) -> _ShortCall:
        return self

    async def __anext__(self) -> Any:
        reply = await self.recv_message()
        if reply is None:
            raise StopAsyncIteration
        return reply

    async def __aexit__(self, *_: object) -> None:
        if self._call is not None:
            self._protocol.release(self._call)


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
