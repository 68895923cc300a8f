"""Media types of layers, and the first bytes by which their compression is told.

Sources: moby/buildkit ``util/compression/compression.go``; opencontainers/image-spec ``media-types.md``.
"""

from __future__ import annotations

from enum import Enum, auto

from asyncmig.buildkit.keys import DOCKER_LAYER, DOCKER_LAYER_GZIP, OCI_LAYER_ZSTD


class Compression(Enum):
    """How a layer is compressed."""

    NONE = auto()
    GZIP = auto()
    ZSTD = auto()


_MAGIC = ((b"\x1f\x8b\x08", DOCKER_LAYER_GZIP), (b"\x28\xb5\x2f\xfd", OCI_LAYER_ZSTD))
_DOCKER = "application/vnd.docker.image.rootfs."
_OCI = "application/vnd.oci.image.layer."
_ENDS = {"tar": Compression.NONE, "gzip": Compression.GZIP, "zstd": Compression.ZSTD}


def media_type_of(head: bytes) -> str:
    """Media type of a layer that begins with these bytes, in the form that BuildKit gives its own layers."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), DOCKER_LAYER)


def compression_of(media_type: str) -> Compression | None:
    """The compression that a media type of layers names, be it Docker's or OCI's, foreign or not; ``None`` for others."""
    if not media_type.startswith((_DOCKER, _OCI)):
        return None
    return _ENDS.get(media_type.replace("+", ".").rpartition(".")[2])
