"""A server that writes its frames as each test wants them, other than a library would."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import hpack

from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import Lease, LeasesStub, ListResponse
from asyncmig.stores.containerd.channel import ContainerdChannel
from tests.clock import SAFETY

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20
OK_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
OK_TRAILERS = [("grpc-status", "0"), ("grpc-message", "")]
REPLY = ListResponse(leases=[Lease(id="x")])

Frame = tuple[int, int, int, bytes]


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(body) << 8 | kind, flags, stream) + body


def prefixed(message: bytes, *, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


class Connection:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, table_size: int) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._decoder.max_allowed_table_size = table_size

    def send(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def frames(self) -> AsyncIterator[Frame]:
        """What the client sends."""
        assert await self._reader.readexactly(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        while True:
            try:
                length_and_kind, flags, stream = struct.unpack(">IBI", await self._reader.readexactly(9))
            except asyncio.IncompleteReadError:
                return
            kind, body = length_and_kind & 0xFF, await self._reader.readexactly(length_and_kind >> 8)
            if (kind, flags) == (SETTINGS, 0):
                self.send(frame(SETTINGS, 1, 0))  # until then its windows are not as large as it says
            yield kind, flags, stream, body

    async def requests(self) -> AsyncIterator[tuple[int, dict[str, str], bytes]]:
        """Stream, headers and message of each request."""
        headers: dict[int, dict[str, str]] = {}
        async for kind, _, stream, body in self.frames():
            if kind == HEADERS:
                headers[stream] = {str(name): str(value) for name, value in self._decoder.decode(body)}
            elif kind == DATA:
                yield stream, headers.pop(stream), body[5:]

    def block(self, headers: list[tuple[str, str]]) -> bytes:
        return self._encoder.encode(headers)

    def reply(self, stream: int, message: bytes = bytes(REPLY)) -> list[bytes]:
        """The frames of an answer."""
        return [
            frame(HEADERS, END_HEADERS, stream, self.block(OK_HEADERS)),
            frame(DATA, 0, stream, prefixed(message)),
            frame(HEADERS, END_HEADERS | END_STREAM, stream, self.block(OK_TRAILERS)),
        ]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (the test has a time limit)
        await asyncio.sleep(0.01)


Script = Callable[[Connection], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, *, settings: bytes = b"", table_size: int = 4096) -> AsyncIterator[LeasesStub]:
    """A client of a server that runs ``script`` on each connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        connection = Connection(reader, writer, table_size)
        connection.send(frame(SETTINGS, 0, 0, settings))
        try:
            await script(connection)
        except asyncio.CancelledError:
            pass  # asyncio complains of a handler that is cancelled
        finally:
            writer.close()

    with tempfile.TemporaryDirectory(prefix="ctd-") as directory, anyio.fail_after(SAFETY):
        address = str(Path(directory) / "s")
        server = await asyncio.start_unix_server(serve, address)
        channel = ContainerdChannel(address)
        try:
            yield LeasesStub(channel, metadata={"containerd-namespace": "buildkit"})
        finally:
            channel.close()
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def answering(answer: Callable[[Connection, int], list[bytes]]) -> Script:
    """Sends these frames for each request."""

    async def script(connection: Connection) -> None:
        async for stream, _, _ in connection.requests():
            connection.send(*answer(connection, stream))

    return script
