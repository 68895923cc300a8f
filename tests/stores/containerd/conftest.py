"""A fake containerd that holds a small v1 cache, and what must be gone when a test has ended."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncmig.stores.containerd.client import Client
from asyncmig.stores.containerd.stores import open_containerd
from asyncmig.stores.ports import Stores
from tests.caches import V1Cache, sample_cache
from tests.stores.containerd.fake import FakeContainerd


@pytest.fixture
def cache() -> V1Cache:
    return sample_cache()


@pytest.fixture
def fake(cache: V1Cache) -> Iterator[FakeContainerd]:
    """A running server with the stores of ``cache``."""
    with (
        tempfile.TemporaryDirectory(prefix="ctd-") as directory,
        FakeContainerd(Path(directory) / "containerd.sock", cache.in_memory()) as server,
    ):
        yield server


@pytest.fixture
def worker(cache: V1Cache, tmp_path: Path) -> Path:
    """The worker directory of ``cache``."""
    directory = tmp_path / "containerd-overlayfs"
    directory.mkdir()
    cache.write_metadata(directory / "metadata.db")
    return directory


@asynccontextmanager
async def stores_of(fake: FakeContainerd, *, patience: float = 300.0, concurrency: int = 8) -> AsyncIterator[Stores]:
    """The ports over ``fake``, with its calls counted from now on."""
    async with open_containerd(
        str(fake.address), namespace="buildkit", snapshotter="overlayfs", concurrency=concurrency, patience=patience
    ) as running:
        fake.calls.clear()
        yield running.stores


class Received:
    """Counts the messages of lists that the client has received.

    A server that has sent some and then breaks the connection can wait until they have arrived.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        stream = Client.stream

        async def counted(*args: Any) -> AsyncGenerator[Any]:
            async with aclosing(stream(*args)) as replies:
                async for reply in replies:
                    self._count += 1
                    yield reply

        monkeypatch.setattr(Client, "stream", counted)

    async def until(self, count: int) -> None:
        """Wait until so many have arrived.  On the server's event loop."""
        while self._count < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Received:
    return Received(monkeypatch)


def bridge_threads() -> list[str]:
    """Threads of the adapter's own that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name == "asyncmig-containerd"]


def sockets() -> set[str]:
    """Sockets that this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
