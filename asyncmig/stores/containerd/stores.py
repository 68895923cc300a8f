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
    """A containerd that has passed the checks.  ``version`` is the version it reports."""

    version: str
    stores: Stores


@asynccontextmanager
async def open_containerd(
    address: str, *, namespace: str, snapshotter: str, concurrency: int, patience: float, progress: Progress = no_progress
) -> AsyncIterator[RunningContainerd]:
    """The stores behind the socket ``address``, open until the end of the block.

    ``concurrency``: calls at a time.  ``patience``: seconds to wait for a containerd that has gone away.  ``progress``: called
    with the number of items done; under trio it is called from another thread.  Works under asyncio and trio.  Opening changes
    nothing.  Leaving the block, also by an error or cancellation, leaves no connection, task or thread behind.

    Raises :class:`LayoutError` or :class:`ContainerdError` if this can't be the right containerd, or it lacks what is needed.
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
                close()  # an event loop that is being torn down starts no new work, so close here
                raise
