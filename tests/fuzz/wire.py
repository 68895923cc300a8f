"""Target: the bytes of a connection.  A server sends any frames, in any order, and goes away when it likes.

An input is a list of steps: frames that are as they should be, wrong in one respect, or nothing but bytes.  The server takes
them when the first request has come, on each connection anew.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hpack

from asyncmig.errors import ContainerdError
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import ReadContentRequest
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import Lease, ListRequest, ListResponse
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import (
    Info,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    StatSnapshotRequest,
    StatSnapshotResponse,
)
from asyncmig.stores.containerd.client import Client, Limits
from tests.fuzz.files import directory
from tests.fuzz.source import Source

CALL = 0.03
"""Seconds that a call may take.  Most servers here never answer all calls."""
SECONDS = 60.0
"""For all calls of one input."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x4, 0x8, 0x20
_OK = [(":status", "200"), ("content-type", "application/grpc")]
_END = [("grpc-status", "0"), ("grpc-message", "")]
_STATUSES = ["0", "1", "2", "4", "5", "6", "8", "12", "14", "17", "-1", "99999", "", "x", "\u00b2", " 5", "0" * 5000]
_TEXTS = ["", "no", "%", "%zz", "%ff%fe", "%00", "\x1b[31m", "database not open", "a" * 4000, "\u00e9", "%F0%9F%98%80"]
_NAMES = [
    ":status",
    "content-type",
    "grpc-status",
    "grpc-message",
    "grpc-encoding",
    ":path",
    "",
    "X",
    "te",
    "grpc-status-details-bin",
]
_MESSAGES = [
    bytes(ListResponse(leases=[Lease(id="a")])),
    bytes(StatSnapshotResponse(info=Info(name="a"))),
    bytes(ListSnapshotsResponse(info=[Info(name=str(i)) for i in range(5)])),
    b"", b"\x08\x01", b"\xff" * 9, b"\x0a\x00" * 3000,
]  # fmt: skip
_SIZES = [0, 1, 4, 5, 6, 255, 1024, 16384, 16385, 65535, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


def frame(kind: int, flags: int, stream: int, body: bytes = b"", length: int | None = None) -> bytes:
    """A frame; ``length`` is what it says of itself."""
    return struct.pack(">IBI", ((len(body) if length is None else length) << 8 | kind) & 0xFFFF_FFFF, flags, stream) + body


def prefixed(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message as gRPC sends it."""
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


class _Server:
    """One connection's side that is up to no good."""

    def __init__(self, source: Source, streams: list[int]) -> None:
        self.source = source
        self.streams = streams
        self.encoder = hpack.Encoder()

    def stream(self) -> int:
        """A stream that the client has opened, or another one."""
        choice = self.source.number()
        if choice < 230 and self.streams:
            return self.streams[choice % len(self.streams)]
        return [0, 1, 2, 3, 5, 7, 0x7FFF_FFFF, 0x8000_0001, 0xFFFF_FFFF][choice % 9]

    def block(self, headers: list[tuple[str, str]]) -> bytes:
        return self.encoder.encode(headers)

    def step(self) -> bytes:
        """What to send next."""
        return self.source.pick(_STEPS)(self)

    # -- as it should be

    def answer(self) -> bytes:
        stream, message = self.stream(), self.source.pick(_MESSAGES)
        return (
            frame(HEADERS, END_HEADERS, stream, self.block(_OK))
            + frame(DATA, 0, stream, prefixed(message))
            + frame(HEADERS, END_HEADERS | END_STREAM, stream, self.block(_END))
        )

    def begin(self) -> bytes:
        return frame(HEADERS, END_HEADERS, self.stream(), self.block(_OK))

    def message(self) -> bytes:
        return frame(DATA, self.source.number() % 8 == 0, self.stream(), prefixed(self.source.pick(_MESSAGES)))

    def refusal(self) -> bytes:
        headers = _OK if self.source.number() % 2 else []
        end = [("grpc-status", self.source.pick(_STATUSES)), ("grpc-message", self.source.pick(_TEXTS))]
        return frame(HEADERS, END_HEADERS | END_STREAM, self.stream(), self.block(headers + end))

    # -- wrong in one respect

    def odd_message(self) -> bytes:
        message = prefixed(
            self.source.pick(_MESSAGES), compressed=self.source.pick([0, 1, 255]), length=self.source.pick(_SIZES) & 0xFFFF_FFFF
        )
        return frame(DATA, self.source.pick([0, 0, END_STREAM, PADDED, PADDED | END_STREAM]), self.stream(), message)

    def odd_headers(self) -> bytes:
        texts = [*_TEXTS, *_STATUSES, "200", "404", "503", "application/grpc"]
        headers = [(self.source.pick(_NAMES), self.source.pick(texts)) for _ in range(self.source.number() % 4)]
        flags = self.source.pick(
            [END_HEADERS, END_HEADERS | END_STREAM, 0, END_STREAM, END_HEADERS | PADDED, END_HEADERS | WITH_PRIORITY]
        )
        return frame(HEADERS, flags, self.stream(), self.block(headers))

    def odd_block(self) -> bytes:
        flags = self.source.pick([END_HEADERS, END_HEADERS | END_STREAM, 0, END_HEADERS | PADDED | WITH_PRIORITY])
        return frame(HEADERS, flags, self.stream(), self.source.text()[:40])

    def many_headers(self) -> bytes:
        """Headers that go on and on."""
        count, size = self.source.pick([1, 10, 100, 1000]), self.source.pick([0, 1, 1000, 16000])
        stream = self.stream()
        first = frame(HEADERS, self.source.pick([0, END_STREAM]), stream, self.block(_OK))
        last = frame(CONTINUATION, END_HEADERS, stream) if self.source.number() % 2 else b""
        return first + frame(CONTINUATION, 0, stream, b"\0\1a\1b" * (size // 5)) * min(count, 1 + 400_000 // (size + 9)) + last

    def long_trailers(self) -> bytes:
        """Megabytes of metadata, by few bytes: one header that is in the table, named again and again."""
        block = self.encoder.encode([("x", "y" * 3000)])
        times = self.source.pick([1, 20, 1000, 16000])
        return frame(HEADERS, END_HEADERS | END_STREAM, self.stream(), block + b"\xbe" * (times - 1))

    def reset(self) -> bytes:
        return frame(RST_STREAM, 0, self.stream(), struct.pack(">I", self.source.pick([0, 1, 2, 7, 8, 11, 99, 1 << 31])))

    def settings(self) -> bytes:
        body = b"".join(
            struct.pack(">HI", self.source.pick([1, 2, 3, 4, 5, 6, 8, 99]), self.source.pick(_SIZES))
            for _ in range(self.source.number() % 4)
        )
        return frame(SETTINGS, self.source.number() % 8 == 0, 0, body)

    def window(self) -> bytes:
        return frame(WINDOW_UPDATE, 0, self.source.pick([0, self.stream()]), struct.pack(">I", self.source.pick(_SIZES)))

    def farewell(self) -> bytes:
        return frame(
            GOAWAY,
            0,
            0,
            struct.pack(">II", self.source.pick(_SIZES), self.source.pick([0, 1, 11, 99])) + self.source.text()[:8],
        )

    def ping(self) -> bytes:
        return frame(PING, self.source.number() % 2, 0, b"12345678") * self.source.pick([1, 1, 100])

    def any_frame(self) -> bytes:
        kind, flags, stream = self.source.number() % 14, self.source.number(), self.source.pick([0, self.stream()])
        return frame(kind, flags, stream, self.source.text()[:40])

    def any_length(self) -> bytes:
        return frame(
            self.source.number() % 10,
            self.source.number(),
            self.stream(),
            self.source.text()[:8],
            self.source.pick(_SIZES) & 0xFF_FFFF,
        )

    def any_bytes(self) -> bytes:
        return self.source.text()[:40]

    def promise(self) -> bytes:
        block = self.block([(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")])
        return frame(PUSH_PROMISE, END_HEADERS, self.stream(), struct.pack(">I", self.source.pick([2, 4, 1, 0])) + block)


# Inputs of the corpus name a step by its place: another one goes to the end.
_STEPS: list[Callable[[_Server], bytes]] = [
    _Server.answer, _Server.answer, _Server.begin, _Server.message, _Server.message, _Server.refusal, _Server.refusal,
    _Server.odd_message, _Server.odd_message, _Server.odd_headers, _Server.odd_headers, _Server.odd_block, _Server.many_headers,
    _Server.long_trailers, _Server.reset, _Server.settings, _Server.window, _Server.farewell, _Server.ping, _Server.any_frame,
    _Server.any_frame, _Server.any_length, _Server.any_bytes, _Server.promise,
]  # fmt: skip


def wire(data: bytes) -> None:
    """Calls end in time, with an answer or with a :class:`ContainerdError`, and leave nothing behind."""
    descriptors = len(os.listdir("/proc/self/fd"))
    problems: list[str] = []
    asyncio.run(_converse(data, problems))
    assert not problems, problems
    assert len(os.listdir("/proc/self/fd")) <= descriptors, "a socket is left"


async def _converse(data: bytes, problems: list[str]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(f"{context['message']}: {context.get('exception')!r}"))
    tasks: set[asyncio.Task[None]] = set()
    source = Source(data)
    options = source.number()
    body = source.rest()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await _serve(reader, writer, body, options)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    path = str(directory() / "socket")
    server = await asyncio.start_unix_server(serve, path)
    before = asyncio.all_tasks()
    started = time.monotonic()
    try:
        await _call(path, options)
        assert time.monotonic() - started < SECONDS
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - before - tasks
        assert not left, left
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        with suppress(FileNotFoundError):  # from Python 3.13 on the server does it
            os.unlink(path)
        await asyncio.sleep(0)
        if sys.exc_info()[0] is None and options % 16 == 0:
            gc.collect()  # tells of tasks whose errors nobody has looked at


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, options: int) -> None:
    source = Source(body)
    if options & 1:
        writer.write(frame(SETTINGS, 0, 0))
    streams = await _requests(reader, 1 + (options >> 1) % 3)
    server = _Server(source, streams)
    at_a_time = [1 << 20, 1, 7, 1000][(options >> 3) % 4]
    while not source.is_empty:
        data = server.step()
        if options & 32:
            for at in range(0, min(len(data), 200 * at_a_time), at_a_time):
                _send(writer, data[at : at + at_a_time])
                await asyncio.sleep(0)
        else:
            _send(writer, data)
        if source.number() % 8 == 0:
            await writer.drain()
    if options & 64:
        await writer.drain()
        return  # and it is closed
    while await reader.read(1 << 16):
        pass


def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.transport.is_closing():
        raise ConnectionResetError
    writer.write(data)


async def _requests(reader: asyncio.StreamReader, count: int) -> list[int]:
    """The streams of the first requests, as far as they come."""
    streams: list[int] = []
    try:
        await reader.readexactly(24)
        while len(streams) < count:
            async with asyncio.timeout(0.02):
                length_and_kind, _, stream = struct.unpack(">IBI", await reader.readexactly(9))
            await reader.readexactly(length_and_kind >> 8)
            if length_and_kind & 0xFF == HEADERS:
                streams.append(stream)
    except (asyncio.IncompleteReadError, TimeoutError):
        pass
    return streams or [1]


async def _call(path: str, options: int) -> None:
    # An outage of no time: what gets no answer is not asked again.
    with Client(path, "buildkit", Limits(call=CALL, outage=0.0)) as client:
        calls = [
            _one(client, client.leases.list, ListRequest()),
            _one(client, client.snapshots.stat, StatSnapshotRequest(snapshotter="overlayfs", key="a")),
            _many(client, client.snapshots.list, ListSnapshotsRequest(snapshotter="overlayfs")),
            _many(client, client.content.read, ReadContentRequest(digest="sha256:00", size=10)),
        ]
        if options & 128:
            for call in calls:
                await call
        else:
            await asyncio.gather(*calls)


async def _one(client: Client, method: Any, request: Any) -> None:
    try:
        reply = await client.call(method, request)
    except ContainerdError as error:
        assert str(error).isprintable(), str(error)
    else:
        assert reply is not None


async def _many(client: Client, method: Any, request: Any) -> None:
    try:
        async for reply in client.stream(method, request):
            assert reply is not None
    except ContainerdError as error:
        assert str(error).isprintable(), str(error)


def seeds() -> list[bytes]:
    """Each step by itself and after an answer that is as it should be, over few and many requests."""
    r = random.Random(4)
    single = [bytes([1 | r.randrange(256) & 0xFE, step]) + r.randbytes(6) for step in range(len(_STEPS)) for _ in range(3)]
    longer = [bytes([r.randrange(256)]) + r.randbytes(r.choice([10, 20, 40])) for _ in range(60)]
    return [b"\x01", b"\x01" + bytes(8), *single, *longer]
