"""Is this the right place?  In a wrong namespace or snapshotter every snapshot of a cache would seem to be missing."""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.errors import LayoutError, printable
from asyncmig.stores.containerd._pb.containerd.services.introspection.v1 import Plugin, PluginsRequest
from asyncmig.stores.containerd._pb.containerd.services.namespaces.v1 import ListNamespacesRequest
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotRequest
from asyncmig.stores.containerd.client import Client, InvalidArgumentError, NotFoundError

_SAMPLE = 16


async def check_place(client: Client, snapshotter: str, names: Sequence[str]) -> None:
    """Raise :class:`LayoutError` if none of a sample of these snapshots is here but some are elsewhere, or there is no here.

    Here is ``snapshotter`` in the namespace of ``client``.
    """
    sample = names[:: max(1, len(names) // _SAMPLE)][:_SAMPLE]
    if not sample or await _count(client, snapshotter, sample):
        return
    existing = await namespaces(client)
    others = await _elsewhere(client, existing, sample)
    if others:
        raise LayoutError(
            f"containerd at {printable(client.address)}: none of {len(sample)} records looked up has a snapshot in "
            f"namespace {printable(client.namespace)}, snapshotter {printable(snapshotter)}; "
            f"they are in: {'; '.join(others)}"
        )
    if client.namespace not in existing:
        raise missing(client, "namespace", client.namespace, existing)


async def _elsewhere(client: Client, existing: Sequence[str], sample: Sequence[str]) -> list[str]:
    """The places that have some of the snapshots, as options, those with most of them first."""
    found = []
    working = [name for name, problem in (await all_snapshotters(client)).items() if not problem]
    for namespace in existing:
        with client.in_namespace(namespace) as other:
            for snapshotter in working:
                hits = await _count(other, snapshotter, sample)
                if hits:
                    place = f"--namespace {printable(namespace)} --snapshotter {printable(snapshotter)}"
                    found.append((hits, f"{place} ({hits} of them)"))
    return [text for _, text in sorted(found, reverse=True)]


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


async def all_snapshotters(client: Client) -> dict[str, str]:
    """Names of all snapshotters, and why they do not work: "" for one that does."""
    request = PluginsRequest(filters=["type==io.containerd.snapshotter.v1"])
    reply = await client.call(client.introspection.plugins, request)
    return {plugin.id: _problem(plugin) for plugin in sorted(reply.plugins, key=lambda plugin: plugin.id)}


def _problem(plugin: Plugin) -> str:
    return (plugin.init_err.message or "it failed to start") if plugin.init_err else ""
