"""One request, one short answer: a short way through grpclib for the calls that a migration makes by the ten thousand.

Made for grpclib 0.4.8 and 0.4.9 with h2 4.x.  What it stands on there, ``tests/stores/containerd/test_unary.py`` holds.

grpclib and the HTTP/2 library below it take 200 microseconds of CPU time for such a call, in pure Python: states, events,
header tuples and wake-ups for a life of a stream that here is always the same.  grpclib still makes the connection and remakes
it, introduces itself, and deals with all that is about the connection as a whole: settings, pings, windows, its end.  Only the
frames of streams are written and read here, on a connection that has no other streams.  Calls with long answers, and requests
that this connection does not take at once, go another way (:class:`asyncmig.stores.containerd.channel.ContainerdChannel`).

A call is ended by its future.  So nothing is left in a task by a lost connection, other than where grpclib does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from struct import Struct
from struct import error as StructError

from grpclib.client import _H2_TO_GRPC_STATUS_MAP
from grpclib.const import Status
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import USER_AGENT, decode_grpc_message, encode_metadata
from grpclib.protocol import H2Protocol
from hpack import HPACKError

Headers = list[tuple[bytes, bytes]]

_Received = dict[bytes, bytes]
"""Headers that have come, by name.  What is looked at comes once."""

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 5, 8, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x4, 0x8, 0x20
_CANCEL = 8
_CONTENT_TYPES = (GRPC_CONTENT_TYPE.encode(), f"{GRPC_CONTENT_TYPE}+proto".encode())
_LAST_STREAM = 2**31 - 1

# Length and kind of a frame are read and written as one number: three bytes and one.
_FRAME = Struct(">IBI")
_FRAME_AND_NUMBER = Struct(">IBII")
_FRAME_AND_PREFIX = Struct(">IBIBI")
_PREFIX = Struct(">BI")
"""What stands before a message: whether it is compressed, its length."""
_NUMBER = Struct(">I")


LONGEST_ANSWER = 32 << 20
"""Bytes of an answer, or of one message of a long one.  containerd sends messages of 16 MiB at most."""
_MOST_MESSAGES = 10_000
"""Messages of a short answer.  Those of Read are the only ones with more than one, and have a MiB each."""
_MOST_SEEN = 256
"""Different headers that are remembered.  A server has a handful."""


def too_large(size: int) -> GRPCError:
    """The error for an answer that would take too much memory, as gRPC libraries call it."""
    return GRPCError(Status.RESOURCE_EXHAUSTED, f"an answer of {size} bytes; at most {LONGEST_ANSWER} are taken")


class BadFrameError(Exception):
    """The server has sent what no server sends."""


class _Ignored:
    """For grpclib, which wakes up whoever waits for a window; here nobody does."""

    def set(self) -> None:
        pass


class PendingCall:
    """A call that has been sent.  It is among the streams of grpclib's connection, which ends them when it ends."""

    __slots__ = ("deadline", "headers", "parts", "reply", "size", "stream_id", "unacknowledged")

    window_updated = _Ignored()

    def __init__(self, stream_id: int, reply: asyncio.Future[bytes], deadline: float) -> None:
        self.stream_id = stream_id
        self.reply = reply
        self.deadline = deadline
        self.headers: _Received | None = None
        self.parts: list[bytes] = []
        self.size = self.unacknowledged = 0

    def __terminated__(self, reason: str) -> None:
        self.fail(StreamTerminatedError(reason))

    def fail(self, error: Exception) -> None:
        """End it."""
        if not self.reply.done():
            self.reply.set_exception(error)

    def finish(self, trailers: _Received) -> None:
        """End it with what it was answered, or the error that the trailers tell."""
        if self.reply.done():
            return
        try:
            self.reply.set_result(_body(self.headers or trailers, trailers, self.parts))
        except GRPCError as error:
            self.reply.set_exception(error)


def _body(headers: _Received, trailers: _Received, parts: list[bytes]) -> bytes:
    if headers.get(b":status") != b"200" or headers.get(b"content-type") not in _CONTENT_TYPES:
        raise _no_grpc(headers)
    if trailers.get(b"grpc-status") != b"0":
        raise _refused(trailers)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def messages_in(body: bytes) -> list[bytes]:
    """The messages that an answer consists of."""
    found: list[bytes] = []
    at, end = 0, len(body)
    while at < end:
        if end - at < _PREFIX.size:
            raise GRPCError(Status.INTERNAL, "an answer that ends within a message")
        compressed, length = _PREFIX.unpack_from(body, at)
        at += _PREFIX.size
        if compressed or at + length > end:
            raise GRPCError(Status.INTERNAL, "an answer whose messages are compressed or end too soon")
        if len(found) >= _MOST_MESSAGES:
            raise GRPCError(Status.INTERNAL, f"an answer of more than {_MOST_MESSAGES} messages")
        found.append(body[at : at + length])
        at += length
    return found


def _no_grpc(headers: _Received) -> GRPCError:
    http_status = headers.get(b":status", b"").decode(errors="replace")
    if http_status != "200":
        status = _H2_TO_GRPC_STATUS_MAP.get(http_status, Status.UNKNOWN)
        return GRPCError(status, f"Received :status = {http_status!r}")
    return GRPCError(Status.UNKNOWN, f"Invalid content-type: {headers.get(b'content-type')!r}")


def _refused(trailers: _Received) -> GRPCError:
    try:
        status = Status(int(trailers.get(b"grpc-status", b"")))
    except ValueError:
        return GRPCError(Status.UNKNOWN, f"Invalid grpc-status: {trailers.get(b'grpc-status')!r}")
    message = trailers.get(b"grpc-message")
    return GRPCError(status, None if message is None else decode_grpc_message(message.decode(errors="replace")))


class UnaryProtocol(H2Protocol):
    """A connection that carries calls whose answer is taken as a whole, and nothing else."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce ourselves, as grpclib does it."""
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()
        self._h2 = self.connection._connection
        self._calls: dict[int, PendingCall] = self.processor.streams  # type: ignore[assignment]
        self._write: Callable[[bytes], None] = transport.write  # type: ignore[attr-defined]
        self._is_closing: Callable[[], bool] = transport.is_closing
        self._next_stream = 1
        self._rest = b""  # the beginning of a frame
        self._block: tuple[int, int, bytes] | None = None  # stream, flags and the beginning of headers
        self._sent: dict[object, bytes] = {}
        self._seen: dict[bytes, _Received] = {}
        self._unacknowledged = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._read_settings()

    def _read_settings(self) -> None:
        settings = self._h2.remote_settings
        self._most_calls = settings.max_concurrent_streams
        self._longest = min(settings.max_frame_size, settings.initial_window_size) - _PREFIX.size
        self._sent.clear()  # the server may have asked for a smaller table of headers

    # -- sending

    def start(self, headers: Callable[[], Headers], key: object, message: bytes, timeout: float | None) -> PendingCall | None:
        """Send a request; ``None`` if that is not possible just now.  ``key`` stands for ``headers()``."""
        size = len(message)
        stream_id, h2 = self._next_stream, self._h2
        if (
            size > self._longest
            or size + _PREFIX.size > h2.outbound_flow_control_window
            or len(self._calls) >= self._most_calls
            or stream_id > _LAST_STREAM
            or not self.connection.write_ready.is_set()
            or self._is_closing()
        ):
            return None
        self._next_stream += 2
        h2.outbound_flow_control_window -= size + _PREFIX.size
        block = self._sent.get(key) or self._encode(headers(), key)
        self._write(
            b"".join(
                (
                    _FRAME.pack(len(block) << 8 | _HEADERS, _END_HEADERS, stream_id),
                    block,
                    _FRAME_AND_PREFIX.pack(size + _PREFIX.size << 8 | _DATA, _END_STREAM, stream_id, 0, size),
                    message,
                )
            )
        )
        now = self._loop.time()
        deadline = now + (timeout if timeout is not None else 1e9)
        call = self._calls[stream_id] = PendingCall(stream_id, self._loop.create_future(), deadline)
        if self._alarm is None or deadline < self._alarm.when():
            self._set_alarm(deadline)
        return call

    def _encode(self, headers: Headers, key: object) -> bytes:
        """The block of these headers.

        When the server's table has them all, they are numbers in it, a byte each, until something is added to the table, and so
        are those of all other calls.
        """
        block: bytes = self._h2.encoder.encode(headers)
        if _only_indexed(block):
            self._sent[key] = block
        else:
            self._sent.clear()
        return block

    def release(self, call: PendingCall) -> None:
        """Nobody waits for this call any longer: if the server still works on it, it is told."""
        if self._calls.pop(call.stream_id, None) is not None and not self._is_closing():
            self._write(_FRAME_AND_NUMBER.pack(4 << 8 | _RST_STREAM, 0, call.stream_id, _CANCEL))
        if call.reply.done() and not call.reply.cancelled():
            call.reply.exception()  # looked at, so that asyncio does not complain

    # -- time: a timer for the call that would be the first to wait too long, rather than one for each

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = self._loop.time()
        for call in self._calls.values():
            if call.deadline <= now:
                call.fail(TimeoutError("Deadline exceeded"))
        waiting = [call.deadline for call in self._calls.values() if call.deadline > now]
        if waiting:
            self._set_alarm(min(waiting))

    def connection_lost(self, exc: BaseException | None) -> None:
        """End all calls."""
        super().connection_lost(exc)
        if self._alarm is not None:
            self._alarm.cancel()

    # -- receiving

    def data_received(self, data: bytes) -> None:
        """Take frames apart.  grpclib gets those that belong to no stream."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= _FRAME.size:
                length_and_kind, flags, stream_id = _FRAME.unpack_from(data, at)
                begin = at + _FRAME.size
                if length_and_kind >> 8 > self._h2.max_inbound_frame_size:
                    raise BadFrameError("a frame that is too long")
                if begin + (length_and_kind >> 8) > end:
                    break
                frame, at = at, begin + (length_and_kind >> 8)
                if stream_id & _LAST_STREAM:
                    self._frame(length_and_kind & 0xFF, flags, stream_id & _LAST_STREAM, data[begin:at])
                else:
                    super().data_received(data[frame:at])
                    if length_and_kind & 0xFF == _SETTINGS:
                        self._read_settings()
                if self._is_closing():
                    return
        except (BadFrameError, HPACKError, IndexError, StructError) as error:
            self.processor.close(f"Protocol error: {error}")
            return
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        if self._block is not None and kind != _CONTINUATION:
            raise BadFrameError("headers without an end")
        if kind == _DATA:
            self._data(flags, stream_id, body)
        elif kind == _HEADERS:
            if flags & (_PADDED | _PRIORITY):
                body = _without_padding(flags, body)[5 if flags & _PRIORITY else 0 :]
            self._headers(flags, stream_id, flags, body)
        elif kind == _CONTINUATION:
            if self._block is None or self._block[0] != stream_id:
                raise BadFrameError("headers without a beginning")
            _, first_flags, before = self._block
            self._block = None
            if len(before) > self._h2.max_inbound_frame_size * 4:
                raise BadFrameError("headers that are too long")
            self._headers(first_flags, stream_id, flags, before + body)
        elif kind == _RST_STREAM:
            [reason] = _NUMBER.unpack(body)
            call = self._calls.pop(stream_id, None)
            if call is not None:
                call.fail(StreamTerminatedError(f"Stream reset by remote party, error_code: {reason}"))
        elif kind == _PUSH_PROMISE:
            raise BadFrameError("a promise")

    def _headers(self, flags: int, stream_id: int, last_flags: int, block: bytes) -> None:
        if not last_flags & _END_HEADERS:
            self._block = (stream_id, flags, block)
            return
        headers = self._seen.get(block)
        if headers is None:  # decoded even if it is for nobody: the table of headers changes with it
            headers = dict(self._h2.decoder.decode(block, raw=True))
            if not _only_indexed(block) or len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            else:
                self._seen[block] = headers
        if flags & _END_STREAM:
            call = self._calls.pop(stream_id, None)
            if call is not None:
                call.finish(headers)
        else:
            call = self._calls.get(stream_id)
            if call is not None:
                call.headers = headers

    def _data(self, flags: int, stream_id: int, body: bytes) -> None:
        size = len(body)
        self._unacknowledged += size
        if self._unacknowledged * 2 > self.config.http2_connection_window_size:
            self._acknowledge(0, self._unacknowledged)
            self._unacknowledged = 0
        call = self._calls.get(stream_id)
        if call is None:
            return
        call.size += size
        if call.size > LONGEST_ANSWER:
            call.fail(too_large(call.size))  # and whoever waits for it tells the server
            call.parts.clear()
            return
        call.parts.append(_without_padding(flags, body) if flags & _PADDED else body)
        if flags & _END_STREAM:
            del self._calls[stream_id]
            call.finish({})
            return
        call.unacknowledged += size
        if call.unacknowledged * 2 > self.config.http2_stream_window_size:
            self._acknowledge(stream_id, call.unacknowledged)
            call.unacknowledged = 0

    def _acknowledge(self, stream_id: int, size: int) -> None:
        self._write(_FRAME_AND_NUMBER.pack(4 << 8 | _WINDOW_UPDATE, 0, stream_id, size))


def request_headers(scheme: str, authority: str, route: str, metadata: Collection[tuple[str, str | bytes]]) -> Headers:
    """The headers that grpclib sends."""
    headers = [(":method", "POST"), (":scheme", scheme), (":path", route), (":authority", authority)]
    headers += [("te", "trailers"), ("content-type", GRPC_CONTENT_TYPE), ("user-agent", USER_AGENT)]
    return [(name.encode(), value.encode()) for name, value in (*headers, *encode_metadata(metadata))]


def _only_indexed(block: bytes) -> bool:
    """Whether it consists of numbers of one byte, so that it neither changes the table of headers nor is long."""
    return min(block, default=0) > 0x80


def _without_padding(flags: int, body: bytes) -> bytes:
    if not flags & _PADDED:
        return body
    if body[0] >= len(body):
        raise BadFrameError("more padding than frame")
    return body[1 : len(body) - body[0]]
