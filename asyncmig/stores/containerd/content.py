"""Blobs, through containerd's content service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from asyncmig.errors import ContainerdError
from asyncmig.stores.containerd._pb.containerd.services.content.v1 import (
    Info,
    InfoRequest,
    ListContentRequest,
    ReadContentRequest,
    UpdateRequest,
)
from asyncmig.stores.containerd._pb.google.protobuf import FieldMask
from asyncmig.stores.containerd.bridge import Bridge
from asyncmig.stores.containerd.client import Client, InvalidArgumentError, NotFoundError, OutOfRangeError
from asyncmig.stores.containerd.labels import ROOTED, SeenLabels
from asyncmig.stores.containerd.reading import Reader
from asyncmig.stores.fanout import Progress, fan_out
from asyncmig.stores.ports import GC_ROOT, HEAD_SIZE, ContentInfo

_READ_WHOLE = 4096
"""Bytes up to which a blob is read as a whole, which takes less than a second call."""
_MOST_READ = 4 << 20
"""Bytes that an answer to Read may have, with those of all attempts.  Some kilobytes are asked for."""
_MESSAGE = 1024
"""What each of its messages counts besides its bytes."""


class ContainerdContent:
    """The content port."""

    def __init__(self, bridge: Bridge, client: Client, concurrency: int, progress: Progress) -> None:
        self._bridge = bridge
        self._client = client
        self._concurrency = concurrency
        self._progress = progress
        self._labels = SeenLabels(concurrency, progress)
        self._reader = Reader(self._info, self._list, self._found, concurrency, progress)

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        """Info of each blob; through List if there are many."""
        return await self._bridge.run(partial(self._reader.read_many, digests))

    async def _info(self, digest: str) -> Info | None:
        try:
            reply = await self._client.call(self._client.content.info, InfoRequest(digest=digest), f"blob {digest}")
        except (NotFoundError, InvalidArgumentError):
            return None  # the name is not a digest, so no blob has it
        return self._client.required(reply.info, f"info blob {digest}")

    async def _list(self, *filters: str) -> AsyncGenerator[list[tuple[str, Info]]]:
        request = ListContentRequest(filters=list(filters))
        async with aclosing(self._client.stream(self._client.content.list, request, "blobs")) as replies:
            async for reply in replies:
                yield [(info.digest, info) for info in reply.info]

    def _found(self, info: Info) -> ContentInfo:
        self._labels.note(info.digest, info.labels)
        return ContentInfo(info.digest, info.size, info.labels.get(GC_ROOT))

    async def list_all(self, *, rooted: bool = False) -> list[ContentInfo]:
        """All blobs through List."""
        filters = (ROOTED,) if rooted else ()
        # Check the label here, too: an old containerd may ignore the filter, as for snapshots.
        return await self._bridge.run(
            lambda: self._reader.read_all(self._list(*filters), lambda info: not rooted or GC_ROOT in info.labels)
        )

    async def head_many(self, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        """The heads, with one or two calls for each blob.

        Before some version of 2.x, containerd does not tell that the data is longer than ``size``: it reads only up to the
        size in its database, and no call returns the size of the file.  Raises :class:`ContainerdError` if anything else, such
        as a bad disk, keeps containerd from reading: its answer does not say whether the data is at fault.
        """
        return await self._bridge.run(
            lambda: fan_out(self._head, blobs, concurrency=self._concurrency, progress=self._progress)
        )

    async def _head(self, blob: ContentInfo) -> bytes | None:
        # Always ask for one byte more than there should be.  containerd leaves out bytes that don't exist, without an error.
        if blob.size <= _READ_WHOLE:
            data = await self._read(blob.digest, 0, blob.size + 1)
            return data[:HEAD_SIZE] if data is not None and len(data) == blob.size else None
        head = await self._read(blob.digest, 0, HEAD_SIZE)
        if head is None or len(head) != HEAD_SIZE:
            return None
        last = await self._read(blob.digest, blob.size - 1, 2)
        return head if last is not None and len(last) == 1 else None

    async def _read(self, digest: str, offset: int, size: int) -> bytes | None:
        """As many of these bytes as exist; ``None`` if the blob does not exist, or ends before ``offset``, or ``size`` < 1."""
        if size <= 0:
            return None  # would mean all that follows; nothing has a negative size
        received = 0
        parts: dict[int, bytes] = {}  # by place: after an interruption the answers begin anew
        request = ReadContentRequest(digest=digest, offset=offset, size=size)
        try:
            async with aclosing(self._client.stream(self._client.content.read, request, f"blob {digest}")) as replies:
                async for reply in replies:
                    received += len(reply.data) + _MESSAGE
                    if received > _MOST_READ:
                        raise ContainerdError(self._client.address, f"read blob {digest}", "more than was asked for")
                    parts[reply.offset] = reply.data
        except (NotFoundError, OutOfRangeError, InvalidArgumentError):
            return None
        return b"".join(parts[place] for place in sorted(parts))

    async def remove_label_many(self, digests: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        """Remove the label; makes no call for a blob that was seen without it."""
        remove = partial(self._remove_label, label)
        return await self._bridge.run(partial(self._labels.remove_many, digests, label, remove))

    async def _remove_label(self, label: str, digest: str) -> None:
        request = UpdateRequest(info=Info(digest=digest), update_mask=FieldMask(paths=[f"labels.{label}"]))
        await self._client.call(self._client.content.update, request, f"blob {digest}")

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        """Set the label.  If a blob is given several values, any of them may stay."""
        set_one = partial(self._set_label, label)
        return await self._bridge.run(partial(self._labels.set_many, values, set_one))

    async def _set_label(self, label: str, item: tuple[str, str]) -> None:
        digest, value = item
        info, mask = Info(digest=digest, labels={label: value}), FieldMask(paths=[f"labels.{label}"])
        await self._client.call(self._client.content.update, UpdateRequest(info=info, update_mask=mask), f"blob {digest}")
