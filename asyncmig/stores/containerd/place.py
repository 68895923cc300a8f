"""Is this the right place?  In a wrong namespace or snapshotter every snapshot of a cache would seem to be missing."""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.errors import LayoutError, printable
from asyncmig.stores.containerd._pb.containerd.services.introspection.v1 import Plugin, PluginsRequest
from asyncmig.stores.containerd._pb.containerd.services.namespaces.v1 import ListNamespacesRequest
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotRequest
from asyncmig.stores.containerd.client import Client, InvalidArgumentError, NotFoundError

_SAMPLE = 16


class Place:
    """A snapshotter in a namespace of a containerd: those of ``client``."""

    def __init__(self, client: Client, snapshotter: str) -> None:
        self._client = client
        self._snapshotter = snapshotter

    async def check(self, names: Sequence[str]) -> None:
        """Raise :class:`LayoutError` if the namespace does not exist, or none of a sample of these snapshots but elsewhere."""
        sample = names[:: max(1, len(names) // _SAMPLE)][:_SAMPLE]
        if not sample or await _count(self._client, self._snapshotter, sample):
            return
        existing = await namespaces(self._client)
        others = []
        for namespace in existing:
            with self._client.in_namespace(namespace) as client:
                for snapshotter in await snapshotters(self._client):
                    hits = await _count(client, snapshotter, sample)
                    if hits:
                        place = f"--namespace {printable(namespace)} --snapshotter {printable(snapshotter)}"
                        others.append((hits, f"{place} ({hits} of them)"))
        if others:
            raise LayoutError(
                f"containerd at {printable(self._client.address)}: none of {len(sample)} records looked up has a snapshot in "
                f"namespace {printable(self._client.namespace)}, snapshotter {printable(self._snapshotter)}; "
                f"they are in: {'; '.join(text for _, text in sorted(others, reverse=True))}"
            )
        if self._client.namespace not in existing:
            raise missing(self._client, "namespace", self._client.namespace, existing)


def missing(client: Client, kind: str, name: str, existing: list[str]) -> LayoutError:
    """The error for a namespace or snapshotter that does not exist."""
    there = ", ".join(map(printable, existing)) or "none"
    return LayoutError(
        f"containerd at {printable(client.address)}: has no {kind} {printable(name)}; there is: {there} (--{kind})"
    )


async def _count(client: Client, snapshotter: str, names: Sequence[str]) -> int:
    """How many of the snapshots exist."""
    count = 0
    for name in names:
        try:
            request = StatSnapshotRequest(snapshotter=snapshotter, key=name)
            await client.call(client.snapshots.stat, request, f"snapshot {name}")
        except (NotFoundError, InvalidArgumentError):
            continue
        count += 1
    return count


async def namespaces(client: Client) -> list[str]:
    """Names of all namespaces."""
    reply = await client.call(client.namespaces.list, ListNamespacesRequest(), "namespaces")
    return sorted(namespace.name for namespace in reply.namespaces)


async def snapshotters(client: Client) -> list[str]:
    """Names of all snapshotters that work."""
    return [name for name, problem in (await all_snapshotters(client)).items() if not problem]


async def all_snapshotters(client: Client) -> dict[str, str]:
    """Names of all snapshotters, and why they do not work: "" for one that does."""
    request = PluginsRequest(filters=["type==io.containerd.snapshotter.v1"])
    reply = await client.call(client.introspection.plugins, request)
    return {plugin.id: _problem(plugin) for plugin in sorted(reply.plugins, key=lambda plugin: plugin.id)}


def _problem(plugin: Plugin) -> str:
    return (plugin.init_err.message or "it failed to start") if plugin.init_err else ""
