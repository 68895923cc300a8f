"""Where a containerd listens."""

from __future__ import annotations

import os

from asyncmig.errors import LayoutError, printable

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
ADDRESS_VARIABLE = "CONTAINERD_ADDRESS"
NAMESPACE_VARIABLE = "CONTAINERD_NAMESPACE"

_MAX_PATH = 107
"""Bytes that a path may have: the size of ``sockaddr_un.sun_path`` minus the final NUL."""


def socket_path(address: str) -> str:
    """The absolute path of the unix socket that ``address`` names.

    ``address`` is a path, ``unix:///path`` or ``unix:path``, the forms that ctr accepts.  Raises :class:`LayoutError` for
    anything else: containerd does not offer its API over a network.
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
        raise LayoutError(f"address {printable(address)!r} is not a socket's path; give one such as {DEFAULT_ADDRESS}")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > _MAX_PATH:
        raise LayoutError(
            f"address {printable(address)}: the path of a unix socket may have at most {_MAX_PATH} bytes; "
            "link to it from a shorter path"
        )
    return path
