"""Blobs, through containerd's content service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from asyncmig.stores.containerd._pb.containerd.services.content.v1 import (
    Info,
    InfoRequest,
    ListContentRequest,
    UpdateRequest,
)
from asyncmig.stores.containerd._pb.google.protobuf import FieldMask
from asyncmig.stores.containerd.bridge import Bridge
from asyncmig.stores.containerd.client import Client, InvalidArgumentError, NotFoundError
from asyncmig.stores.containerd.labels import SeenLabels
from asyncmig.stores.containerd.reading import Reader
from asyncmig.stores.fanout import Progress
from asyncmig.stores.ports import ContentInfo


class ContainerdContent:
    """The content port."""

    def __init__(self, bridge: Bridge, client: Client, concurrency: int, progress: Progress) -> None:
        self._bridge = bridge
        self._client = client
        self._labels = SeenLabels(concurrency, progress)
        self._reader = Reader(self._info, self._list, self._found, concurrency, progress)

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        """Info of all blobs, through List if they are many."""
        return await self._bridge.run(partial(self._reader.read_many, digests))

    async def _info(self, digest: str) -> Info | None:
        try:
            reply = await self._client.call(self._client.content.info, InfoRequest(digest=digest), f"blob {digest}")
        except (NotFoundError, InvalidArgumentError):
            return None  # a store can't hold what is no digest
        return self._client.required(reply.info, f"info blob {digest}")

    async def _list(self) -> AsyncGenerator[list[tuple[str, Info]]]:
        async with aclosing(self._client.stream(self._client.content.list, ListContentRequest(), "blobs")) as replies:
            async for reply in replies:
                yield [(info.digest, info) for info in reply.info]

    def _found(self, info: Info) -> ContentInfo:
        self._labels.note(info.digest, info.labels)
        return ContentInfo(info.digest, info.size)

    async def remove_label_many(self, digests: Sequence[str], label: str) -> list[bool]:
        """Remove the label, with no call for a blob that was seen without it."""
        remove = partial(self._remove_label, label)
        return await self._bridge.run(partial(self._labels.remove_many, digests, label, remove))

    async def _remove_label(self, label: str, digest: str) -> None:
        request = UpdateRequest(info=Info(digest=digest), update_mask=FieldMask(paths=[f"labels.{label}"]))
        await self._client.call(self._client.content.update, request, f"blob {digest}")
