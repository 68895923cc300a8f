"""Leases, through containerd's leases service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import partial

from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    ListRequest,
    ListResourcesRequest,
)
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import Resource as ResourceMessage
from asyncmig.stores.containerd.bridge import Bridge
from asyncmig.stores.containerd.client import AlreadyExistsError, Client, NotFoundError, TooLargeError
from asyncmig.stores.fanout import fan_out
from asyncmig.stores.ports import Lease, Protected, Resource

_FILTERED_ONE_BY_ONE = 16
"""Leases up to which each has a filter of its own."""

Labels = dict[str, dict[str, str]]
"""Labels of leases by id."""


class ContainerdLeases:
    """The lease port."""

    def __init__(self, bridge: Bridge, client: Client, concurrency: int) -> None:
        self._bridge = bridge
        self._client = client
        self._concurrency = concurrency

    @property
    def atomic(self) -> bool:
        """Each lease is several calls."""
        return False

    # -- reading

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        """One List for all, and ListResources of those that exist."""
        return await self._bridge.run(partial(self._list_many, ids))

    async def _list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        labels: Labels = {}
        if ids:
            await self._list(sorted(set(ids)), labels)
        existing = [lease_id for lease_id in dict.fromkeys(ids) if lease_id in labels]
        resources = await fan_out(self._resources, existing, concurrency=self._concurrency)
        found = {
            lease_id: Lease(lease_id, labels[lease_id], held)
            for lease_id, held in zip(existing, resources, strict=True)
            if held is not None
        }
        return [found.get(lease_id) for lease_id in ids]

    async def _list(self, ids: list[str], labels: Labels) -> None:
        """Put the labels of those of the leases ``ids`` that exist into ``labels``.

        containerd answers in one message and sends none above 16 MiB, about 165,000 leases.  Then it is asked for shards: the
        leases whose ids begin alike.
        """
        todo: list[tuple[str, list[str]]] = [("", ids)]
        while todo:
            prefix, shard = todo.pop()
            try:
                request = ListRequest(filters=_filters(prefix, shard))
                reply = await self._client.call(self._client.leases.list, request, "leases")
            except TooLargeError:
                if len(shard) == 1:
                    raise
                todo.extend(_shards(shard))
            else:
                wanted = set(shard)
                labels.update((lease.id, dict(lease.labels)) for lease in reply.leases if lease.id in wanted)

    async def _resources(self, lease_id: str) -> tuple[Resource, ...] | None:
        request = ListResourcesRequest(id=lease_id)
        try:
            reply = await self._client.call(self._client.leases.list_resources, request, f"lease {lease_id}")
        except NotFoundError:
            return None
        return tuple(Resource(resource.type, resource.id) for resource in reply.resources)

    # -- writing

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        """Create and AddResource, the resources of one lease one after the other.

        containerd has written what it acknowledges.  Where a connection was lost in between, it is not known which attempt
        took effect, and the lease counts as not confirmed.
        """
        return await self._bridge.run(lambda: fan_out(self._protect, leases, concurrency=self._concurrency))

    async def _protect(self, lease: Lease) -> Protected:
        is_new = confirmed = True
        try:
            request = CreateRequest(id=lease.id, labels=dict(lease.labels))
            await self._client.call(self._client.leases.create, request, f"lease {lease.id}")
        except AlreadyExistsError as error:
            # Our first attempt may have created it, and only its answer was lost.
            is_new, confirmed = error.retried, False
        for resource in lease.resources:
            message = ResourceMessage(id=resource.id, type=resource.type)
            about = f"{resource.type} {resource.id} to lease {lease.id}"
            await self._client.call(self._client.leases.add_resource, AddResourceRequest(id=lease.id, resource=message), about)
        return Protected(is_new, confirmed)


def _filters(prefix: str, ids: Sequence[str]) -> list[str]:
    """Filters for the leases ``ids``, which all begin with ``prefix``; more may match."""
    if len(ids) <= _FILTERED_ONE_BY_ONE:
        return [f"id=={_quoted(lease_id)}" for lease_id in ids]
    return [f"id~={_quoted('^' + re.escape(prefix))}"] if prefix else []


def _quoted(text: str) -> str:
    """A value in containerd's filter language: a Go string literal.  JSON's are such, but for characters beyond 16 bits."""
    return json.dumps(text, ensure_ascii=False)


def _shards(ids: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Split ids that differ by the first character in which they do; each part with the prefix that its ids share."""
    ordered = sorted(ids)
    first, last = ordered[0], ordered[-1]
    length = 1 + next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    parts: dict[str, list[str]] = {}
    for lease_id in ordered:
        parts.setdefault(lease_id[:length], []).append(lease_id)
    return list(parts.items())
