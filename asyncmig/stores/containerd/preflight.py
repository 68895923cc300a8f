"""Can this containerd do what a migration needs?  These checks run before anything is changed."""

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
"""The names that containerd accepts for a namespace (``identifiers/validate.go``).  Each call carries it in a header."""

_AT_ONCE = Limits(call=10.0, outage=0.0)


async def check_server(client: Client, snapshotter: str) -> str:
    """Check that the server answers, has the snapshotter and supports leases with resources; return its version.

    Raises :class:`LayoutError` if the snapshotter does not exist or does not work, or if the namespace's name is invalid;
    :class:`ContainerdError` for everything else.  Each message names the remedy.  A valid namespace need not exist: an empty
    cache has none.
    """
    if not _NAMESPACE.fullmatch(client.namespace):
        allowed = "letters and digits, joined by single characters . _ -"
        raise LayoutError(f"namespace {printable(client.namespace)!r} is invalid: containerd allows {allowed}; fix --namespace")
    version = await _reach(client)
    found = await all_snapshotters(client)
    if snapshotter not in found:
        raise missing(client, "snapshotter", snapshotter, [name for name, problem in found.items() if not problem])
    if found[snapshotter]:
        raise LayoutError(
            f"containerd at {printable(client.address)}: snapshotter {printable(snapshotter)} does not work: "
            f"{printable(found[snapshotter])}; repair it and restart containerd, or choose another one with --snapshotter"
        )
    await _check_leases(client)
    return version


async def _reach(client: Client) -> str:
    """The version of the server.  Does not wait for a server that is not there: the address may be wrong."""
    with Client(client.address, client.namespace, _AT_ONCE) as once:
        try:
            reply = await once.call(once.version.version, Empty())
        except ContainerdUnavailableError as error:
            advice = "give the socket of a running containerd (--address), or the root of a stopped one (--containerd-root)"
            cause = f"{error.cause}; {advice}"
            raise ContainerdUnavailableError(client.address, error.call, cause) from error
    return reply.version


async def _check_leases(client: Client) -> None:
    """Raise for a containerd before 1.3, which answers both calls with UNIMPLEMENTED.

    The lease does not exist, so the calls change nothing.
    """
    nobody = f"asyncmig-preflight-{uuid.uuid4().hex}"
    resource = Resource(id=f"sha256:{'0' * 64}", type="content")
    with suppress(NotFoundError):
        await client.call(client.leases.list_resources, ListResourcesRequest(id=nobody))
    with suppress(NotFoundError):
        await client.call(client.leases.add_resource, AddResourceRequest(id=nobody, resource=resource))
