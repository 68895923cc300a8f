"""The calls of a live migration, for the Go client to make them, too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncmig.stores.containerd._pb.containerd.services.content import v1 as content
from asyncmig.stores.containerd._pb.containerd.services.introspection import v1 as introspection
from asyncmig.stores.containerd._pb.containerd.services.leases import v1 as leases
from asyncmig.stores.containerd._pb.containerd.services.snapshots import v1 as snapshots
from asyncmig.stores.containerd._pb.google.protobuf import Empty
from asyncmig.stores.containerd.client import Client
from benchmarks.baseline import BaselineError

Call = dict[str, Any]


def as_call(request: Any) -> Call:  # noqa: PLR0911  (a table, with names for what is in the requests)
    """A request in the words of ``live/main.go``."""
    match request:
        case Empty():
            return {"op": "version"}
        case introspection.PluginsRequest():
            return {"op": "plugins", "filters": request.filters}
        case snapshots.StatSnapshotRequest():
            return {"op": "stat snapshot", "snapshotter": request.snapshotter, "name": request.key}
        case content.InfoRequest():
            return {"op": "info blob", "name": request.digest}
        case snapshots.ListSnapshotsRequest():
            return {"op": "list snapshots", "snapshotter": request.snapshotter, "filters": request.filters, "objects": 0}
        case content.ListContentRequest():
            return {"op": "list blobs", "filters": request.filters, "objects": 0}
        case leases.ListRequest():
            return {"op": "list leases", "filters": request.filters}
        case leases.ListResourcesRequest():
            return {"op": "list resources", "name": request.id}
        case leases.CreateRequest():
            return {"op": "create lease", "name": request.id, "labels": request.labels}
        case leases.AddResourceRequest(resource=leases.Resource() as resource):
            return {"op": "add resource", "name": request.id, "resource": resource.id, "type": resource.type}
        case snapshots.UpdateSnapshotRequest(info=snapshots.Info() as snapshot, update_mask=mask):
            call = {"op": "update snapshot", "snapshotter": request.snapshotter, "name": snapshot.name}
            return call | {"labels": snapshot.labels, "paths": mask.paths if mask else []}
        case content.UpdateRequest(info=content.Info() as blob, update_mask=mask):
            return {"op": "update blob", "name": blob.digest, "labels": blob.labels, "paths": mask.paths if mask else []}
    raise BaselineError(f"the Go client of the benchmark does not know {type(request).__name__}")


class Recorder:
    """Notes what a migration in this process asks containerd for, one call after the other."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def install(self) -> None:
        """From now on."""
        unary, stream = Client.call, Client.stream

        async def call(client: Client, method: Any, request: Any, about: str = "") -> Any:
            self.calls.append(as_call(request))
            return await unary(client, method, request, about)

        async def read(client: Client, method: Any, request: Any, about: str = "") -> AsyncGenerator[Any]:
            noted = as_call(request)
            self.calls.append(noted)
            async with aclosing(stream(client, method, request, about)) as replies:
                async for reply in replies:
                    noted["objects"] += len(reply.info)
                    yield reply

        Client.call, Client.stream = call, read  # type: ignore[method-assign, assignment]

    def write(self, path: str) -> None:
        """Write them as phases of chains."""
        Path(path).write_text(json.dumps(in_phases(self.calls)))


def in_phases(calls: list[Call]) -> list[list[list[Call]]]:
    """Phases, each of chains of calls.

    A phase is what the pipeline does at a time, with barriers between, so calls of another kind begin another one.  The calls
    for one lease are a chain: they are made one after the other.
    """
    phases: list[list[list[Call]]] = []
    chains: dict[str, list[Call]] = {}
    kind = ""
    for call in calls:
        its_kind = "protect" if call["op"] in ("create lease", "add resource") else call["op"]
        if its_kind != kind:
            kind, chains = its_kind, {}
            phases.append([])
        if kind == "protect" and call["name"] in chains:
            chains[call["name"]].append(call)
        else:
            chains[call.get("name", "")] = [call]
            phases[-1].append(chains[call.get("name", "")])
    return phases


@dataclass(frozen=True)
class GoRun:
    """What the Go client took: wall and CPU seconds; its calls, and how many of them found nothing, or something already."""

    seconds: float
    cpu: float
    calls: int
    missing: int
    existed: int


def replay(program: Path, calls: Path, address: str, concurrency: int) -> GoRun:
    """Let the Go client make the calls that were recorded."""
    command = [str(program), "-address", address, "-concurrency", str(concurrency)]
    with calls.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BaselineError(f"the Go client failed: {done.stderr.strip()}")
    return GoRun(**json.loads(done.stdout))
