"""The asyncio side of the adapter, in an asyncio and in a trio program."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextvars import ContextVar

import anyio
import pytest
import sniffio

from asyncmig.errors import StoreError
from asyncmig.stores.containerd.bridge import open_bridge
from tests.clock import SAFETY
from tests.stores.containerd.conftest import bridge_threads

pytestmark = pytest.mark.anyio

VARIABLE = ContextVar("VARIABLE", default="default")


async def test_functions_run_under_asyncio() -> None:
    async def where() -> tuple[str, bool]:
        await anyio.sleep(0.001)
        return sniffio.current_async_library(), asyncio.current_task() is not None

    async with open_bridge() as bridge:
        assert await bridge.run(where) == ("asyncio", True)
    assert not bridge_threads()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_asyncio_program_needs_no_thread() -> None:
    async def thread() -> threading.Thread:
        return threading.current_thread()

    async with open_bridge() as bridge:
        assert await bridge.run(thread) is threading.current_thread()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_no_context_leaks_into_the_thread() -> None:
    async def value() -> str:
        return VARIABLE.get()

    VARIABLE.set("trio's")
    async with open_bridge() as bridge:
        assert await bridge.run(value) == "default"


async def test_errors_come_out_as_they_are() -> None:
    async def fail() -> None:
        raise ValueError("as it is")

    async with open_bridge() as bridge:
        with pytest.raises(ValueError, match="as it is"):
            await bridge.run(fail)


async def cancel_when(event: threading.Event, scope: anyio.CancelScope) -> None:
    assert await anyio.to_thread.run_sync(event.wait, SAFETY)
    scope.cancel()


async def test_cancellation_waits_for_the_other_side_to_end() -> None:
    events = []
    begun = threading.Event()

    async def work() -> None:
        try:
            begun.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            events.append("cleaned up")

    async with open_bridge() as bridge:
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            group.start_soon(cancel_when, begun, scope)
            with scope:
                await bridge.run(work)
        events.append("back")
    assert scope.cancelled_caught
    assert events == ["cleaned up", "back"]


async def test_functions_run_at_a_time() -> None:
    async def work() -> None:
        barrier.append(1)
        while len(barrier) < 5:  # noqa: ASYNC110
            await anyio.sleep(0.001)

    barrier: list[int] = []
    with anyio.fail_after(SAFETY):
        async with open_bridge() as bridge, anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(bridge.run, work)


async def test_no_thread_stays_when_the_program_is_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with open_bridge():
            scope.cancel()
            await anyio.sleep_forever()
    assert not bridge_threads()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_an_event_loop_that_can_t_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop(main: object) -> None:
        main.close()  # type: ignore[attr-defined]
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "run", no_loop)
    with pytest.raises(StoreError, match=r"cannot start an event loop for the calls to containerd: .*Too many open files"):
        async with open_bridge():
            pass
    assert not bridge_threads()


def test_ctrl_c_while_the_thread_starts_leaves_none_behind() -> None:
    """No shield keeps it from the main task, which waits until the thread has its event loop."""
    import trio  # noqa: PLC0415

    @trio.lowlevel.enable_ki_protection
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        interrupt()  # raised where the task waits next
        async with open_bridge():
            pytest.fail("was not interrupted")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert not bridge_threads()
