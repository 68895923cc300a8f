"""Can this containerd do what a migration needs?  Asked before anything is changed."""

from __future__ import annotations

import re
import uuid
from contextlib import suppress

from asyncmig.errors import ContainerdUnavailableError, LayoutError, printable
from asyncmig.stores.containerd._pb.containerd.services.leases.v1 import AddResourceRequest, ListResourcesRequest, Resource
from asyncmig.stores.containerd._pb.google.protobuf import Empty
from asyncmig.stores.containerd.client import Client, Limits, NotFoundError
from asyncmig.stores.containerd.place import all_snapshotters, missing

_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
"""What containerd takes for a namespace (``identifiers/validate.go``), which a header of each call carries."""

_AT_ONCE = Limits(call=10.0, outage=0.0)


async def check_server(client: Client, snapshotter: str) -> str:
    """The version of the server, if it can be reached, has the snapshotter, and knows leases with resources.

    Raises :class:`LayoutError` for a snapshotter that does not exist and for a namespace that can't exist,
    :class:`ContainerdError` for the rest, each with the remedy.  (An empty cache may be in a namespace that does not exist.)
    """
    if not _NAMESPACE.fullmatch(client.namespace):
        allowed = "letters and digits, joined by one of . _ -"
        raise LayoutError(f"namespace {printable(client.namespace)!r}: containerd allows {allowed}")
    version = await _reach(client)
    found = await all_snapshotters(client)
    if snapshotter not in found:
        raise missing(client, "snapshotter", snapshotter, [name for name, problem in found.items() if not problem])
    if found[snapshotter]:
        raise LayoutError(
            f"containerd at {printable(client.address)}: snapshotter {printable(snapshotter)} does not work: "
            f"{printable(found[snapshotter])}"
        )
    await _check_leases(client)
    return version


async def _reach(client: Client) -> str:
    """The version of the server.  A server that is not there is not waited for: the address may be wrong."""
    with Client(client.address, client.namespace, _AT_ONCE) as once:
        try:
            reply = await once.call(once.version.version, Empty())
        except ContainerdUnavailableError as error:
            advice = "--address names the socket of a running containerd, --containerd-root the root of a stopped one"
            cause = f"{error.cause}; {advice}"
            raise ContainerdUnavailableError(client.address, error.call, cause) from error
    return reply.version


async def _check_leases(client: Client) -> None:
    """containerd before 1.3 answers both calls with UNIMPLEMENTED; for a lease that does not exist nothing is changed."""
    nobody = f"asyncmig-preflight-{uuid.uuid4().hex}"
    resource = Resource(id=f"sha256:{'0' * 64}", type="content")
    with suppress(NotFoundError):
        await client.call(client.leases.list_resources, ListResourcesRequest(id=nobody))
    with suppress(NotFoundError):
        await client.call(client.leases.add_resource, AddResourceRequest(id=nobody, resource=resource))
