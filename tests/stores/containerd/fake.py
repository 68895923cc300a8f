"""A server that speaks containerd's API over stores in memory, and misbehaves where a test wants it to.

It runs in a thread with an event loop of its own, so that it serves tests on both backends.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from asyncmig.stores.containerd._pb.containerd.services.content import v1 as content
from asyncmig.stores.containerd._pb.containerd.services.introspection import v1 as introspection
from asyncmig.stores.containerd._pb.containerd.services.leases import v1 as leases
from asyncmig.stores.containerd._pb.containerd.services.namespaces import v1 as namespaces
from asyncmig.stores.containerd._pb.containerd.services.snapshots import v1 as snapshots
from asyncmig.stores.containerd._pb.containerd.services.version import v1 as version
from asyncmig.stores.containerd._pb.google.protobuf import Empty
from asyncmig.stores.memory import MemoryBlob, MemoryLease, MemorySnapshot, MemoryStores
from asyncmig.stores.ports import Kind, Resource

PAGE = 100
"""Objects in one message of a list, as in containerd."""
PIECE = 1000
"""Bytes of a blob in one message.  containerd's have a MiB."""


class Drop(Exception):
    """Raised by a hook: the connection ends without an answer."""


Hook = Callable[[str, Any], Awaitable[None]]


async def _no_hook(call: str, request: Any) -> None:
    """Let every call pass."""


class _Server(Server):
    """Ends every connection, also one on which no call has arrived yet."""

    def __init__(self, services: list[Any]) -> None:
        super().__init__(services)
        self._transports: list[Any] = []

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        made = protocol.connection_made

        def note(transport: Any) -> None:
            self._transports.append(transport)
            made(transport)

        protocol.connection_made = note  # type: ignore[method-assign]
        return protocol

    async def end(self) -> None:
        self._abort()  # before the calls are cancelled: they would be answered
        self.close()
        for _ in range(3):  # what has been accepted becomes a connection in a task of its own
            await asyncio.sleep(0)
        self._abort()
        await self.wait_closed()

    def _abort(self) -> None:
        for transport in self._transports:
            transport.abort()


@dataclass
class FakeContainerd:
    """The server.  ``before`` and ``after`` are awaited around each call, with its name and request; they may raise.

    ``state`` is what namespace ``buildkit`` has.  ``elsewhere``: snapshots that exist in other namespaces.
    """

    address: Path
    state: MemoryStores
    before: Hook = _no_hook
    after: Hook = _no_hook
    elsewhere: dict[str, MemoryStores] = field(default_factory=dict)
    snapshotters: dict[str, str] = field(default_factory=lambda: {"native": "", "overlayfs": "", "zfs": "no zfs here"})
    filters_lists: bool = True
    """False for a containerd before 1.4: it lists all snapshots, whatever the filter.  Here for blobs, too."""
    reads_by_file_size: bool = False
    """True for a containerd 2.x of late: a blob is as long for Read as its file, not as its database says."""
    on_page: Hook = _no_hook
    """Awaited before each message of a list."""
    max_leases: int = 1_000_000
    """Leases that fit into one message."""
    calls: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake-containerd")
        self._thread.start()
        assert self._ready.wait(120)

    def stop(self) -> None:
        """End every connection and remove the socket.  ``start`` works afterwards."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = _Server([self])
        self.address.unlink(missing_ok=True)
        await server.start(path=str(self.address))
        self._ready.set()
        await self._stop.wait()
        self.address.unlink()
        await server.end()

    # -- the calls

    def __mapping__(self) -> dict[str, Handler]:
        unary = {
            "version.v1.Version/Version": (self._version, Empty, version.VersionResponse),
            "introspection.v1.Introspection/Plugins": (
                self._plugins, introspection.PluginsRequest, introspection.PluginsResponse,
            ),
            "namespaces.v1.Namespaces/List": (
                self._namespaces, namespaces.ListNamespacesRequest, namespaces.ListNamespacesResponse,
            ),
            "snapshots.v1.Snapshots/Stat": (
                self._stat, snapshots.StatSnapshotRequest, snapshots.StatSnapshotResponse,
            ),
            "snapshots.v1.Snapshots/Update": (
                self._update_snapshot, snapshots.UpdateSnapshotRequest, snapshots.UpdateSnapshotResponse,
            ),
            "content.v1.Content/Info": (self._info, content.InfoRequest, content.InfoResponse),
            "content.v1.Content/Update": (self._update_content, content.UpdateRequest, content.UpdateResponse),
            "leases.v1.Leases/Create": (self._create, leases.CreateRequest, leases.CreateResponse),
            "leases.v1.Leases/Delete": (self._delete, leases.DeleteRequest, Empty),
            "leases.v1.Leases/DeleteResource": (self._delete_resource, leases.DeleteResourceRequest, Empty),
            "leases.v1.Leases/List": (self._list_leases, leases.ListRequest, leases.ListResponse),
            "leases.v1.Leases/AddResource": (self._add_resource, leases.AddResourceRequest, Empty),
            "leases.v1.Leases/ListResources": (
                self._list_resources, leases.ListResourcesRequest, leases.ListResourcesResponse,
            ),
        }  # fmt: skip
        streams = {
            "snapshots.v1.Snapshots/List": (
                self._list_snapshots, snapshots.ListSnapshotsRequest, snapshots.ListSnapshotsResponse,
            ),
            "content.v1.Content/List": (self._list_content, content.ListContentRequest, content.ListContentResponse),
            "content.v1.Content/Read": (self._read, content.ReadContentRequest, content.ReadContentResponse),
        }  # fmt: skip
        kinds = ((unary, Cardinality.UNARY_UNARY), (streams, Cardinality.UNARY_STREAM))
        return {
            f"/containerd.services.{route}": Handler(self._handler(route, function), cardinality, request, reply)
            for methods, cardinality in kinds
            for route, (function, request, reply) in methods.items()
        }

    def _handler(self, route: str, function: Any) -> Callable[[Any], Awaitable[None]]:
        name = route.split(".v1.")[1]

        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            self.calls[name] += 1
            try:
                await self.before(name, request)
                state = self._namespace(name, stream.metadata.get("containerd-namespace"))
                replies = function(state, request)
                await self.after(name, request)
            except Drop:
                stream._stream._transport.abort()
                return
            if isinstance(replies, list):
                await self._send_pages(stream, name, request, replies)
            else:
                await stream.send_message(replies)

        return handle

    async def _send_pages(self, stream: Any, name: str, request: Any, pages: list[Any]) -> None:
        for page in pages:
            try:
                await self.on_page(name, request)
            except Drop:
                stream._stream._transport.abort()
                return
            await stream.send_message(page)

    def _namespace(self, call: str, name: str | None) -> MemoryStores:
        if call.split("/", maxsplit=1)[0] in ("Version", "Introspection", "Namespaces"):
            return self.state
        if not name:
            raise GRPCError(Status.FAILED_PRECONDITION, "namespace is required: failed precondition")
        return self.state if name == "buildkit" else self.elsewhere.get(name, MemoryStores())

    def _version(self, _: MemoryStores, request: Empty) -> Any:
        return version.VersionResponse(version="1.6.20-fake")

    def _plugins(self, _: MemoryStores, request: Any) -> Any:
        plugins = [
            introspection.Plugin(
                type="io.containerd.snapshotter.v1",
                id=name,
                init_err=introspection.Status(code=2, message=problem) if problem else None,
            )
            for name, problem in self.snapshotters.items()
        ]
        return introspection.PluginsResponse(plugins=plugins)

    def _namespaces(self, _: MemoryStores, request: Any) -> Any:
        names = ["buildkit", *self.elsewhere]
        return namespaces.ListNamespacesResponse(namespaces=[namespaces.Namespace(name=name) for name in names])

    def _stat(self, state: MemoryStores, request: snapshots.StatSnapshotRequest) -> Any:
        self._check_snapshotter(request.snapshotter)
        found = state.snapshots.get(request.key) if request.snapshotter == state.snapshotter else None
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"snapshot {request.key} does not exist: not found")
        return snapshots.StatSnapshotResponse(info=_snapshot(request.key, found))

    def _check_snapshotter(self, name: str) -> None:
        if name not in self.snapshotters:
            raise GRPCError(Status.INVALID_ARGUMENT, f"snapshotter not loaded: {name}: invalid argument")

    def _list_snapshots(self, state: MemoryStores, request: snapshots.ListSnapshotsRequest) -> Any:
        filters = request.filters if self.filters_lists else []
        infos = [_snapshot(name, item) for name, item in sorted(state.snapshots.items()) if _passes(item, filters)]
        return [snapshots.ListSnapshotsResponse(info=infos[i : i + PAGE]) for i in range(0, len(infos), PAGE)]

    def _update_snapshot(self, state: MemoryStores, request: snapshots.UpdateSnapshotRequest) -> Any:
        assert request.info is not None
        assert request.update_mask is not None
        _update(state.snapshots, request.info.name, request.info.labels, request.update_mask.paths)
        return snapshots.UpdateSnapshotResponse()

    def _info(self, state: MemoryStores, request: content.InfoRequest) -> Any:
        if not request.digest.startswith("sha256:"):
            raise GRPCError(Status.INVALID_ARGUMENT, "invalid checksum digest format: invalid argument")
        blob = state.blobs.get(request.digest)
        if blob is None:
            raise GRPCError(Status.NOT_FOUND, f"content {request.digest}: not found")
        return content.InfoResponse(info=content.Info(digest=request.digest, size=blob.size, labels=dict(blob.labels)))

    def _list_content(self, state: MemoryStores, request: content.ListContentRequest) -> Any:
        filters = request.filters if self.filters_lists else []
        blobs = [(name, blob) for name, blob in sorted(state.blobs.items()) if _passes(blob, filters)]
        infos = [content.Info(digest=name, size=blob.size, labels=dict(blob.labels)) for name, blob in blobs]
        return [content.ListContentResponse(info=infos[i : i + PAGE]) for i in range(0, len(infos), PAGE)]

    def _read(self, state: MemoryStores, request: content.ReadContentRequest) -> Any:
        """containerd ``services/content/contentserver``."""
        if not request.digest.startswith("sha256:"):
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.digest}: invalid checksum digest format")
        blob = state.blobs.get(request.digest)
        if blob is None or blob.data is None:
            raise GRPCError(Status.NOT_FOUND, f"blob {request.digest}: not found")
        length = len(blob.data) if self.reads_by_file_size else blob.size
        if request.offset > length:
            raise GRPCError(Status.OUT_OF_RANGE, f"read past object length {length} bytes")
        end = min(request.offset + request.size, length) if request.size > 0 else length
        data = blob.data[request.offset : end]
        return [content.ReadContentResponse(offset=i, data=data[i : i + PIECE]) for i in range(0, len(data), PIECE)]

    def _update_content(self, state: MemoryStores, request: content.UpdateRequest) -> Any:
        assert request.info is not None
        assert request.update_mask is not None
        _update(state.blobs, request.info.digest, request.info.labels, request.update_mask.paths)
        return content.UpdateResponse()

    def _create(self, state: MemoryStores, request: leases.CreateRequest) -> Any:
        if request.id in state.leases:
            raise GRPCError(Status.ALREADY_EXISTS, f'lease "{request.id}": already exists')
        state.leases[request.id] = MemoryLease(dict(request.labels))
        return leases.CreateResponse(lease=leases.Lease(id=request.id))

    def _list_leases(self, state: MemoryStores, request: leases.ListRequest) -> Any:
        found = {name: lease for name, lease in state.leases.items() if _matches(name, request.filters)}
        if len(found) > self.max_leases:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "trying to send message larger than max (19351786 vs. 16777216)")
        return leases.ListResponse(leases=[leases.Lease(id=name, labels=dict(item.labels)) for name, item in found.items()])

    def _add_resource(self, state: MemoryStores, request: leases.AddResourceRequest) -> Any:
        assert request.resource is not None
        _lease(state, request.id).resources.add(Resource(request.resource.type, request.resource.id))
        return Empty()

    def _delete(self, state: MemoryStores, request: leases.DeleteRequest) -> Any:
        assert not request.sync, "would wait for the garbage collector"
        _lease(state, request.id)
        del state.leases[request.id]
        return Empty()

    def _delete_resource(self, state: MemoryStores, request: leases.DeleteResourceRequest) -> Any:
        assert request.resource is not None
        _lease(state, request.id).resources.discard(Resource(request.resource.type, request.resource.id))
        return Empty()

    def _list_resources(self, state: MemoryStores, request: leases.ListResourcesRequest) -> Any:
        held = _lease(state, request.id).resources
        return leases.ListResourcesResponse(resources=[leases.Resource(id=item.id, type=item.type) for item in held])


def _snapshot(name: str, item: MemorySnapshot) -> snapshots.Info:
    return snapshots.Info(name=name, parent=item.parent, kind=snapshots.Kind(item.kind.value), labels=dict(item.labels))


def _update(items: Any, name: str, labels: Mapping[str, str], paths: list[str]) -> None:
    if name not in items:
        raise GRPCError(Status.NOT_FOUND, f"{name}: not found")
    for path in paths:
        label = path.removeprefix("labels.")
        items[name].labels.pop(label, None)
        if labels.get(label):
            items[name].labels[label] = labels[label]


def _passes(item: MemorySnapshot | MemoryBlob, filters: list[str]) -> bool:
    """containerd's filters, as far as snapshots and blobs are asked for with them."""
    for text in filters:
        if text == "kind==view":
            if isinstance(item, MemorySnapshot) and item.kind is Kind.VIEW:
                return True
        elif json.loads(text.removeprefix("labels.")) in item.labels:
            return True
    return not filters


def _lease(state: MemoryStores, name: str) -> MemoryLease:
    if name not in state.leases:
        raise GRPCError(Status.NOT_FOUND, f'lease "{name}": not found')
    return state.leases[name]


def _matches(name: str, filters: list[str]) -> bool:
    """containerd's filters, as far as leases are asked for with them."""
    if not filters:
        return True
    for text in filters:
        if text.startswith("id=="):
            if name == json.loads(text.removeprefix("id==")):
                return True
        elif re.search(_python_regex(json.loads(text.removeprefix("id~="))), name):
            return True
    return False


def _python_regex(pattern: str) -> str:
    """A pattern in Go's syntax, as far as it is used, in Python's."""
    pattern = re.sub(r"\\x\{([0-9A-F]+)\}", lambda match: f"\\U{int(match[1], 16):08x}", pattern)
    return re.sub(r"(?<!\\)\$$", r"\\Z", pattern)  # Python's $ takes a newline at the end for the end
