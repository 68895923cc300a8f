"""Target: messages of a containerd that answers anything, and what the stores make of them."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import anyio
import betterproto2

from asyncmig.errors import AsyncmigError
from asyncmig.stores.containerd import messages
from asyncmig.stores.containerd._pb.containerd.services.content import v1 as content
from asyncmig.stores.containerd._pb.containerd.services.introspection import v1 as introspection
from asyncmig.stores.containerd._pb.containerd.services.leases import v1 as leases
from asyncmig.stores.containerd._pb.containerd.services.namespaces import v1 as namespaces
from asyncmig.stores.containerd._pb.containerd.services.snapshots import v1 as snapshots
from asyncmig.stores.containerd._pb.containerd.services.version import v1 as version
from asyncmig.stores.containerd.client import Client, Limits
from asyncmig.stores.containerd.content import ContainerdContent
from asyncmig.stores.containerd.leases import ContainerdLeases
from asyncmig.stores.containerd.preflight import check_server
from asyncmig.stores.containerd.snapshots import ContainerdSnapshots
from asyncmig.stores.fanout import no_progress
from asyncmig.stores.ports import ContentInfo, Lease, SnapshotInfo
from tests.fuzz.source import Source
from tests.stores.containerd.test_messages import assert_as_declared

T = TypeVar("T")

REPLIES: list[Any] = [
    snapshots.StatSnapshotResponse, snapshots.ListSnapshotsResponse, content.InfoResponse, content.ListContentResponse,
    content.ReadContentResponse, leases.ListResponse, leases.ListResourcesResponse, namespaces.ListNamespacesResponse,
    introspection.PluginsResponse, version.VersionResponse,
]  # fmt: skip


_ANSWERS: dict[tuple[str, str], Any] = {
    ("SnapshotsStub", "stat"): snapshots.StatSnapshotResponse,
    ("SnapshotsStub", "list"): snapshots.ListSnapshotsResponse,
    ("ContentStub", "info"): content.InfoResponse,
    ("ContentStub", "list"): content.ListContentResponse,
    ("ContentStub", "read"): content.ReadContentResponse,
    ("LeasesStub", "list"): leases.ListResponse,
    ("LeasesStub", "list_resources"): leases.ListResourcesResponse,
    ("NamespacesStub", "list"): namespaces.ListNamespacesResponse,
    ("IntrospectionStub", "plugins"): introspection.PluginsResponse,
    ("VersionStub", "version"): version.VersionResponse,
}


def full_replies() -> list[bytes]:
    """One of each kind, with everything in it."""
    labels = {"containerd.io/gc.root": "2020-01-02T03:04:05Z", "é": ""}
    snapshot = snapshots.Info(name="a", parent="b", kind=snapshots.Kind.COMMITTED, labels=labels)
    blob = content.Info(digest="sha256:" + "0" * 64, size=300, labels=labels)
    plugins = [
        introspection.Plugin(type="io.containerd.snapshotter.v1", id="overlayfs"),
        introspection.Plugin(type="t", id="zfs", init_err=introspection.Status(code=2, message="no")),
    ]
    found: list[betterproto2.Message] = [
        snapshots.StatSnapshotResponse(info=snapshot),
        snapshots.ListSnapshotsResponse(info=[snapshot, snapshots.Info(name="v", kind=snapshots.Kind.VIEW)]),
        content.InfoResponse(info=blob),
        content.ListContentResponse(info=[blob, content.Info(digest="x", size=-1)]),
        content.ReadContentResponse(offset=1, data=b"\x1f\x8b"),
        leases.ListResponse(leases=[leases.Lease(id="a", labels=labels), leases.Lease(id="b")]),
        leases.ListResourcesResponse(resources=[leases.Resource(id="a", type="snapshots/overlayfs")]),
        namespaces.ListNamespacesResponse(namespaces=[namespaces.Namespace(name="buildkit"), namespaces.Namespace(name="k8s")]),
        introspection.PluginsResponse(plugins=plugins),
        version.VersionResponse(version="1.7"),
    ]
    return [bytes(message) for message in found]


def replies(data: bytes) -> None:
    """A reply is decoded as betterproto2 does it, or refused; what is decoded is what the stores can work with."""
    source = Source(data)
    cls = source.pick(REPLIES)
    others = source.number()
    body = source.rest()
    try:
        message = messages.decode(body, cls)
    except ValueError:
        return
    assert_as_declared(message)
    expected = cls.FromString(body)
    assert message == expected
    assert bytes(message) == bytes(expected)
    anyio.run(_ask, {cls: body}, others)


class _Here:
    async def run(self, function: Callable[[], Awaitable[T]]) -> T:
        return await function()


class _Answering(Client):
    """A client whose server sends certain bytes for certain messages, and well-formed ones for others."""

    def __init__(self, answers: dict[Any, bytes]) -> None:
        super().__init__("/nowhere", "buildkit", Limits())
        self.answers = dict(zip(REPLIES, full_replies(), strict=True)) | answers

    def _answer(self, method: Any) -> Any:
        cls = _ANSWERS.get((type(method.__self__).__name__, method.__name__))
        return messages.decode(self.answers[cls], cls) if cls else leases.CreateResponse()

    async def call(self, method: Any, request: Any, about: str = "") -> Any:
        try:
            return self._answer(method)
        except Exception as error:
            return await self._attempt(_raising(error), "call", 1.0)

    async def stream(self, method: Any, request: Any, about: str = "") -> AsyncGenerator[Any]:
        yield await self.call(method, request, about)

    def in_namespace(self, namespace: str) -> Client:
        assert type(namespace) is str
        return self


def _raising(error: Exception) -> Callable[[], Awaitable[Any]]:
    async def fail() -> Any:
        raise error

    return fail


async def _ask(answers: dict[Any, bytes], what: int) -> None:
    client = _Answering(answers)
    stats = ContainerdSnapshots(_Here(), client, "overlayfs", 2, no_progress)
    blobs = ContainerdContent(_Here(), client, 2, no_progress)
    lease_store = ContainerdLeases(_Here(), client, 2, no_progress)
    names = [str(i) for i in range(70)] if what % 2 else ["a"]
    try:
        _check_snapshots(await stats.stat_many(names))
        _check_snapshots(await stats.views())
        _check_snapshots(await stats.list_all(rooted=True))
        infos = await blobs.info_many(names)
        _check_blobs(infos)
        _check_blobs(await blobs.list_all())
        await blobs.head_many([info for info in infos if info is not None])
        _check_leases(await lease_store.list_many(["a", "b"]))
        _check_leases(await lease_store.list_all())
        assert type(await _version(client)) is str
    except AsyncmigError:
        return


async def _version(client: Client) -> str:
    from asyncmig.stores.containerd import preflight  # noqa: PLC0415

    saved, preflight._reach = preflight._reach, _reach
    try:
        return await check_server(client, "overlayfs")
    finally:
        preflight._reach = saved


async def _reach(client: Client) -> str:
    reply = await client.call(client.version.version, None)
    return str(reply.version) if type(reply.version) is str else reply.version


def _check_snapshots(found: list[SnapshotInfo | None] | list[SnapshotInfo]) -> None:
    for info in found:
        if info is not None:
            assert type(info.name) is type(info.parent) is str


def _check_blobs(found: list[ContentInfo | None] | list[ContentInfo]) -> None:
    for info in found:
        if info is not None:
            assert type(info.digest) is str
            assert type(info.size) is int


def _check_leases(found: list[Lease | None] | list[Lease]) -> None:
    for lease in found:
        if lease is not None:
            assert type(lease.id) is str
            assert all(type(resource.id) is type(resource.type) is str for resource in lease.resources)


def seeds() -> list[bytes]:
    r = random.Random(3)
    full = [bytes([kind, r.randrange(256)]) + body for kind, body in enumerate(full_replies())]
    odd = [
        b"",
        b"\x08\x01",
        b"\x0a\x01x",
        b"\xa2\x06\x01x",
        b"\x0d\0\0\0\0",
        b"\x0a\x02\x08\x01",
        b"\x0a\x02\x0a\x00",
        b"\x0b\x0c",
    ]
    return full + [bytes([kind, 1]) + body for kind in range(len(REPLIES)) for body in odd]
