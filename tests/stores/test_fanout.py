"""Bounded fan-out."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from asyncmig.errors import StoreError
from asyncmig.stores.fanout import fan_out
from tests.clock import SAFETY

pytestmark = pytest.mark.anyio


async def test_results_come_in_the_order_of_the_items() -> None:
    async def slow_if_early(i: int) -> int:
        await anyio.sleep(0.002 * (5 - i % 5))
        return i * i

    assert await fan_out(slow_if_early, range(20), concurrency=4) == [i * i for i in range(20)]


@pytest.mark.parametrize("concurrency", [1, 3, 100])
async def test_never_more_at_a_time_than_allowed(concurrency: int) -> None:
    running = most = 0

    async def call(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):  # turns, in which the others begin
            await anyio.lowlevel.checkpoint()
        running -= 1

    await fan_out(call, range(30), concurrency=concurrency)
    assert most == min(concurrency, 30)


async def test_the_first_error_is_raised_as_itself_and_stops_the_others() -> None:
    called: list[int] = []

    async def call(i: int) -> None:
        called.append(i)
        await anyio.sleep(0.001)
        if i == 2:
            raise ValueError("call 2")

    with pytest.raises(ValueError, match="call 2"):
        await fan_out(call, range(1000), concurrency=4)
    assert len(called) < 20


async def test_cancellation_cancels_the_running_calls() -> None:
    begun = ended = 0

    async def call(_: int) -> None:
        nonlocal begun, ended
        begun += 1
        if begun == 3:
            scope.cancel()
        try:
            await anyio.sleep_forever()
        finally:
            ended += 1

    with anyio.fail_after(SAFETY), anyio.CancelScope() as scope:
        await fan_out(call, range(10), concurrency=3)
    assert ended == 3


async def test_nothing_to_do() -> None:
    async def call(_: int) -> None:
        raise AssertionError

    assert await fan_out(call, [], concurrency=3) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_worker_that_a_library_has_cancelled_is_no_answer() -> None:
    """grpclib cancels tasks to wake them up; a worker that ends by that must not leave a "does not exist" behind."""

    async def call(item: int) -> int:
        if item == 3:
            raise asyncio.CancelledError
        return item

    with pytest.raises(StoreError, match=r"\d+ of 8 calls were interrupted"):
        await fan_out(call, range(8), concurrency=1)
