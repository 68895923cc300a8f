"""Is this the right place?  In the wrong namespace or snapshotter every snapshot of a cache seems to be missing."""

from __future__ import annotations

from collections.abc import Sequence

from asyncmig.errors import LayoutError, printable
from asyncmig.stores.containerd._pb.containerd.services.introspection.v1 import Plugin, PluginsRequest
from asyncmig.stores.containerd._pb.containerd.services.namespaces.v1 import ListNamespacesRequest
from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import StatSnapshotRequest
from asyncmig.stores.containerd.client import Client, InvalidArgumentError, NotFoundError

_SAMPLE = 16


async def check_place(client: Client, snapshotter: str, names: Sequence[str]) -> None:
    """Look for a sample of the snapshots ``names`` in ``snapshotter``, in the namespace of ``client``.

    Raises :class:`LayoutError` if none of them is there and some are elsewhere, or if the namespace does not exist.
    """
    sample = names[:: max(1, len(names) // _SAMPLE)][:_SAMPLE]
    if not sample or await _count(client, snapshotter, sample):
        return
    existing = await namespaces(client)
    others = await _elsewhere(client, existing, sample)
    if others:
        raise LayoutError(
            f"containerd at {printable(client.address)}: asyncmig looked for {len(sample)} "
            f"{'snapshot' if len(sample) == 1 else 'snapshots'} of this cache and found none in "
            f"namespace {printable(client.namespace)}, snapshotter {printable(snapshotter)}; "
            f"use instead: {'; or '.join(others)}"
        )
    if client.namespace not in existing:
        raise missing(client, "namespace", client.namespace, existing)


async def _elsewhere(client: Client, existing: Sequence[str], sample: Sequence[str]) -> list[str]:
    """The places that have some of the snapshots, written as options; the place with most of them comes first."""
    found = []
    working = [name for name, problem in (await all_snapshotters(client)).items() if not problem]
    for namespace in existing:
        with client.in_namespace(namespace) as other:
            for snapshotter in working:
                hits = await _count(other, snapshotter, sample)
                if hits:
                    place = f"--namespace {printable(namespace)} --snapshotter {printable(snapshotter)}"
                    found.append((hits, f"{place} (has {hits} of them)"))
    return [text for _, text in sorted(found, reverse=True)]


def missing(client: Client, kind: str, name: str, existing: list[str]) -> LayoutError:
    """The error for a namespace or snapshotter that does not exist."""
    where = f"containerd at {printable(client.address)}: there is no {kind} {printable(name)}"
    if not existing:
        return LayoutError(f"{where}, and no other one to choose; is this the right containerd (--address)?")
    return LayoutError(f"{where}; choose one with --{kind}: {', '.join(map(printable, existing))}")


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
    """Names of all snapshotters, each with the reason why it does not work; "" if it works."""
    request = PluginsRequest(filters=["type==io.containerd.snapshotter.v1"])
    reply = await client.call(client.introspection.plugins, request)
    return {plugin.id: _problem(plugin) for plugin in sorted(reply.plugins, key=lambda plugin: plugin.id)}


def _problem(plugin: Plugin) -> str:
    return (plugin.init_err.message or "it failed to start") if plugin.init_err else ""
