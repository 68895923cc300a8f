"""Where a containerd listens."""

from __future__ import annotations

import os

from asyncmig.errors import LayoutError, printable

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
ADDRESS_VARIABLE = "CONTAINERD_ADDRESS"
NAMESPACE_VARIABLE = "CONTAINERD_NAMESPACE"

_MAX_PATH = 107
"""Bytes of ``sockaddr_un`` less the NUL at the end."""


def socket_path(address: str) -> str:
    """The absolute path of the unix socket that ``address`` names: a path, ``unix:///path`` or ``unix:path``, as ctr takes it.

    Raises :class:`LayoutError` for anything else: containerd's API is not to be had over a network.
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme == "unix":
        path = rest
    elif address.startswith("unix:"):
        path = address.removeprefix("unix:")
    elif separator:
        raise LayoutError(f"address {printable(address)}: only unix sockets are supported, such as unix://{DEFAULT_ADDRESS}")
    else:
        path = address
    if not path or "\0" in path:
        raise LayoutError(f"address {printable(address)!r}: names no socket")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > _MAX_PATH:
        raise LayoutError(f"address {printable(address)}: the path of a unix socket may have at most {_MAX_PATH} bytes")
    return path
