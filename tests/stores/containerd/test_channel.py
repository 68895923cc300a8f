"""What is put around grpclib's channel."""

from __future__ import annotations

import asyncio

import pytest

from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import CreateResponse, Lease, ListResponse
from asyncmig.stores.containerd.channel import UndecodedReply, _Codec, _JoinedWrites

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


class Transport:
    """Notes what is written."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.events.append(data)

    def close(self) -> None:
        self.events.append("close")
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> str:
        return f"extra {name}"


async def test_what_one_turn_writes_is_sent_at_once() -> None:
    transport = Transport()
    joined = _JoinedWrites(transport)
    joined.write(b"a")
    joined.write(b"b")
    assert transport.events == []
    await asyncio.sleep(0)
    joined.write(b"c")
    await asyncio.sleep(0)
    assert transport.events == [b"ab", b"c"]


async def test_closing_sends_what_is_left_first() -> None:
    transport = Transport()
    joined = _JoinedWrites(transport)
    joined.write(b"a")
    joined.close()
    await asyncio.sleep(0)
    assert transport.events == [b"a", "close"]
    assert joined.is_closing()


async def test_nothing_is_written_to_a_transport_that_is_closing() -> None:
    transport = Transport()
    joined = _JoinedWrites(transport)
    joined.write(b"a")
    transport.closing = True
    await asyncio.sleep(0)
    assert transport.events == []


async def test_everything_else_is_the_transport_s() -> None:
    assert _JoinedWrites(Transport()).get_extra_info("socket") == "extra socket"


async def test_replies_are_decoded_where_somebody_looks_at_them() -> None:
    codec = _Codec()
    reply = CreateResponse(lease=Lease(id="a"))
    assert codec.decode(codec.encode(reply, CreateResponse), CreateResponse) == CreateResponse()
    short = ListResponse(leases=[Lease(id="a")])
    assert codec.decode(codec.encode(short, ListResponse), ListResponse) == short
    long = ListResponse(leases=[Lease(id=5_000 * "a")])
    undecoded = codec.decode(codec.encode(long, ListResponse), ListResponse)
    assert isinstance(undecoded, UndecodedReply)
    assert undecoded.decode() == long
