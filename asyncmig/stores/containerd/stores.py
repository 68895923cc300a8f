"""The three ports over one running containerd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from asyncmig.concurrency import run_uncancellable
from asyncmig.stores.containerd.bridge import open_bridge
from asyncmig.stores.containerd.client import Client, Limits
from asyncmig.stores.containerd.content import ContainerdContent
from asyncmig.stores.containerd.leases import ContainerdLeases
from asyncmig.stores.containerd.preflight import check_server
from asyncmig.stores.containerd.snapshots import ContainerdSnapshots
from asyncmig.stores.fanout import Progress, no_progress
from asyncmig.stores.ports import Stores


@dataclass(frozen=True, slots=True)
class RunningContainerd:
    """A containerd that was found fit; ``version`` is what it says of itself."""

    version: str
    stores: Stores


@asynccontextmanager
async def open_containerd(
    address: str, *, namespace: str, snapshotter: str, concurrency: int, patience: float, progress: Progress = no_progress
) -> AsyncIterator[RunningContainerd]:
    """The stores behind the socket ``address``, until the end of the block.

    ``concurrency``: calls at a time.  ``patience``: seconds for which a containerd that has gone is waited for.  ``progress``:
    called for what was dealt with, under trio from another thread.  Works under asyncio and trio.  Opening changes nothing, and
    no connection, task or thread is left behind.

    Raises :class:`LayoutError` and :class:`ContainerdError` if it can't be the right one, or can't do what is needed.
    """
    clients: list[Client] = []

    async def connect() -> str:
        clients.append(Client(address, namespace, Limits(outage=patience)))
        return await check_server(clients[0], snapshotter)

    def close() -> None:
        while clients:
            clients.pop().close()

    async def close_there() -> None:
        close()

    async with open_bridge() as bridge:
        try:
            version = await bridge.run(connect)
            content = ContainerdContent(bridge, clients[0], concurrency, progress)
            snapshots = ContainerdSnapshots(bridge, clients[0], snapshotter, concurrency, progress)
            leases = ContainerdLeases(bridge, clients[0], concurrency, progress)
            yield RunningContainerd(version, Stores(content, snapshots, leases))
        finally:
            try:
                await run_uncancellable(lambda: bridge.run(close_there))
            except BaseException:
                close()  # in an event loop that is being torn down nothing begins any more
                raise
