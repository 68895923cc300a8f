"""Leases, through containerd's leases service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress
from functools import partial

from asyncmig.bolt import Checkpoint
from asyncmig.concurrency import in_thread
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    DeleteRequest,
    DeleteResourceRequest,
    ListRequest,
    ListResourcesRequest,
    ListResponse,
)
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import Resource as ResourceMessage
from asyncmig.stores.containerd.bridge import Bridge
from asyncmig.stores.containerd.client import AlreadyExistsError, Client, NotFoundError, TooLargeError
from asyncmig.stores.containerd.reading import distinct
from asyncmig.stores.containerd.shards import EVERYTHING, quoted
from asyncmig.stores.fanout import Item, Progress, Result, fan_out
from asyncmig.stores.ports import Lease, Protected, Resource

_FILTERED_ONE_BY_ONE = 16
"""Up to this many leases, each gets a filter of its own."""

Labels = dict[str, dict[str, str]]
"""Labels of leases by id."""


class ContainerdLeases:
    """The lease port."""

    def __init__(self, bridge: Bridge, client: Client, concurrency: int, progress: Progress) -> None:
        self._bridge = bridge
        self._client = client
        self._concurrency = concurrency
        self._progress = progress

    @property
    def atomic(self) -> bool:
        """Never: making a lease takes several calls."""
        return False

    async def _fan_out(self, call: Callable[[Item], Awaitable[Result]], items: Sequence[Item]) -> list[Result]:
        return await fan_out(call, items, concurrency=self._concurrency, progress=self._progress)

    # -- reading

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        """One List for all leases, then ListResources for each that exists."""
        return await self._bridge.run(partial(self._list_many, ids))

    async def _list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        labels: Labels = {}
        wanted = await in_thread(distinct, ids)
        if wanted:
            await self._list_wanted(wanted, labels)
        resources = dict(zip(labels, await self._fan_out(self._resources, list(labels)), strict=True))
        return await in_thread(_in_order, ids, labels, resources)

    async def _list_wanted(self, wanted: Set[str], labels: Labels) -> None:
        """Put the labels of the ``wanted`` leases that exist into ``labels``."""
        if len(wanted) <= _FILTERED_ONE_BY_ONE:
            with suppress(TooLargeError):
                await self._list([f"id=={quoted(lease_id)}" for lease_id in wanted], labels, wanted)
                return
        await self._list_everything(labels, wanted)

    async def list_all(self) -> list[Lease]:
        """List, then ListResources for each; leaves out a lease that is deleted in between.

        The answers do not show one state in time.  Reports no progress, because the total is unknown.
        """
        return await self._bridge.run(self._list_all)

    async def _list_all(self) -> list[Lease]:
        labels: Labels = {}
        await self._list_everything(labels)
        ids = await in_thread(_names, labels)
        held = await fan_out(self._resources, ids, concurrency=self._concurrency)
        return await in_thread(_existing, labels, held)

    async def _list_everything(self, labels: Labels, wanted: Set[str] | None = None) -> None:
        """Put the labels of all leases, or of the ``wanted`` ones, into ``labels``.

        containerd answers in one message and sends none above 16 MiB, which is about 165,000 leases.  If there are more, ask
        for them in shards.
        """
        todo = [EVERYTHING]
        while todo:
            shard = todo.pop()
            try:
                await self._list(shard.filters(), labels, wanted)
            except TooLargeError:
                if shard.is_single:
                    raise
                todo.extend(shard.halves())

    async def _list(self, filters: list[str], labels: Labels, wanted: Set[str] | None) -> None:
        reply = await self._client.call(self._client.leases.list, ListRequest(filters=filters), "leases")
        await in_thread(_note_labels, reply, labels, wanted)

    async def _resources(self, lease_id: str) -> tuple[Resource, ...] | None:
        request = ListResourcesRequest(id=lease_id)
        try:
            reply = await self._client.call(self._client.leases.list_resources, request, f"lease {lease_id}")
        except NotFoundError:
            return None
        return tuple(Resource(resource.type, resource.id) for resource in reply.resources)

    # -- writing

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        """Create each lease, then AddResource for its resources, one after the other.

        containerd has written what it acknowledges.  If a connection is lost in between, we don't know which attempt took
        effect, so the lease counts as not confirmed.
        """
        return await self._bridge.run(partial(self._fan_out, self._protect, leases))

    async def _protect(self, lease: Lease) -> Protected:
        is_new = confirmed = True
        try:
            request = CreateRequest(id=lease.id, labels=dict(lease.labels))
            await self._client.call(self._client.leases.create, request, f"lease {lease.id}")
        except AlreadyExistsError as error:
            # Our first attempt may have created the lease, and only the answer was lost.
            is_new, confirmed = error.retried, False
        for resource in lease.resources:
            message = ResourceMessage(id=resource.id, type=resource.type)
            about = f"{resource.type} {resource.id} to lease {lease.id}"
            await self._client.call(self._client.leases.add_resource, AddResourceRequest(id=lease.id, resource=message), about)
        return Protected(is_new, confirmed)

    async def delete_many(self, ids: Sequence[str]) -> None:
        """Delete the leases without waiting for the garbage collector."""
        await self._bridge.run(partial(self._fan_out, self._delete, ids))

    async def _delete(self, lease_id: str) -> None:
        with suppress(NotFoundError):
            await self._client.call(self._client.leases.delete, DeleteRequest(id=lease_id), f"lease {lease_id}")

    async def remove_resources_many(self, leases: Sequence[Lease]) -> None:
        """DeleteResource for the resources of each lease, one after the other."""
        await self._bridge.run(partial(self._fan_out, self._remove_resources, leases))

    async def _remove_resources(self, lease: Lease) -> None:
        with suppress(NotFoundError):
            for resource in lease.resources:
                request = DeleteResourceRequest(id=lease.id, resource=ResourceMessage(id=resource.id, type=resource.type))
                about = f"{resource.type} {resource.id} of lease {lease.id}"
                await self._client.call(self._client.leases.delete_resource, request, about)


def _names(checkpoint: Checkpoint, labels: Labels) -> list[str]:
    names = []
    for name in labels:
        checkpoint()
        names.append(name)
    return names


def _note_labels(checkpoint: Checkpoint, reply: ListResponse, labels: Labels, wanted: Set[str] | None) -> None:
    for lease in reply.leases:
        checkpoint()
        if wanted is None or lease.id in wanted:
            labels[lease.id] = lease.labels


def _existing(checkpoint: Checkpoint, labels: Labels, held: list[tuple[Resource, ...] | None]) -> list[Lease]:
    leases = []
    for (lease_id, its_labels), resources in zip(labels.items(), held, strict=True):
        checkpoint()
        if resources is not None:
            leases.append(Lease(lease_id, its_labels, resources))
    return leases


def _in_order(
    checkpoint: Checkpoint, ids: Sequence[str], labels: Labels, resources: dict[str, tuple[Resource, ...] | None]
) -> list[Lease | None]:
    found: list[Lease | None] = []
    for lease_id in ids:
        checkpoint()
        held = resources.get(lease_id)
        found.append(None if held is None else Lease(lease_id, labels[lease_id], held))
    return found
