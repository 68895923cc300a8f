"""A grpclib channel that is fit for very many small calls."""

from __future__ import annotations

import asyncio
from typing import Any

from grpclib.client import Channel, Handler
from grpclib.encoding.base import CodecBase
from grpclib.protocol import H2Protocol

from asyncmig.stores.containerd._pb.containerd.services.content.v1 import UpdateResponse
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import CreateResponse
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import UpdateSnapshotResponse

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
        return self._message_type.FromString(self._data)


class _Codec(CodecBase):
    """protobuf, without decoding what nobody looks at: replies that repeat the request, and very long ones for the moment."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        if message_type in _IGNORED:
            return message_type()
        if len(data) > _DECODED_IN_PLACE:
            return UndecodedReply(data, message_type)
        return message_type.FromString(data)


class ContainerdChannel(Channel):
    """A channel to a unix socket.  It connects at the first call, and again after a connection was lost."""

    def __init__(self, path: str) -> None:
        super().__init__(path=path, codec=_Codec())

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that nobody has ended."""
        return bool(self._connected)

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(Handler(), self._config, self._h2_config)


class _Protocol(H2Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_JoinedWrites(transport))  # type: ignore[arg-type]


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
