"""A clock that a test puts on, so that patience and time-outs run out at once, and only when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from weakref import WeakSet

import pytest

from asyncmig.stores.containerd import client

SAFETY = 120.0
"""Seconds after which a test that hangs fails.  Nothing that goes well comes near it, however slow the machine is."""

MOST_PAUSES = 1000
"""Of a client that gives up some time."""


class Clock:
    """The clock of the client, and of every asyncio event loop: also of that which the adapter has in a thread under trio.

    It goes as the real one does, and is put on by :meth:`jump`.  The client's pauses take no time, but put it on by as much.
    No attempt gets less than a minute, also at the end of the patience: that minute is a real one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pauses = 0
        self.on_pause: Callable[[int], None] = lambda number: None
        self._ahead = 0.0
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._lock = Lock()
        monkeypatch.setattr(client, "time", self)
        monkeypatch.setattr(client, "_sleep", self._pause)
        monkeypatch.setattr(client, "_SHORTEST_CALL", 60.0)
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", self._time_of)

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    @property
    def _time_of(self) -> Callable[[asyncio.AbstractEventLoop], float]:
        def time_of(loop: asyncio.AbstractEventLoop) -> float:
            with self._lock:
                self._loops.add(loop)
            return self.monotonic()

        return time_of

    def jump(self, seconds: float) -> None:
        """Put it on.  From any thread."""
        with self._lock:
            self._ahead += seconds
            loops = [*self._loops]
        for loop in loops:
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(lambda: None)  # it sleeps until a moment that may be over now

    async def _pause(self, seconds: float) -> None:
        self.pauses += 1
        assert self.pauses < MOST_PAUSES, "it never gives up"
        self.on_pause(self.pauses)
        self.jump(seconds)
        await asyncio.sleep(0)
