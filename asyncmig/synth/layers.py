"""Contents of blobs: small real layers, image configs and manifests.

This module writes the gzip stream itself, with a stored block.  Versions of zlib compress the same tar differently, but digests
must be the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from struct import pack
from typing import NamedTuple
from zlib import crc32

from asyncmig.buildkit.keys import DOCKER_LAYER_GZIP

_GZIP_HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
_FINAL_STORED_BLOCK = 1
_BLOCK = 512
_END_OF_TAR = 2 * _BLOCK
_MOST_LINES = 40


class Layer(NamedTuple):
    """A layer: the gzipped tar, its digest and the digest of the tar itself."""

    blob: bytes
    digest: bytes
    diff_id: bytes


def digest_of(data: bytes) -> bytes:
    """The digest as containerd writes it."""
    return b"sha256:" + sha256(data).hexdigest().encode()


def build_layer(seed: int) -> Layer:
    """The layer of a seed (128 bits): a tar with one file, whose text and size come from the seed."""
    text = b"%032x\n" % seed * (1 + seed % _MOST_LINES)
    tar = b"".join((_header(len(text)), text, bytes(-len(text) % _BLOCK + _END_OF_TAR)))
    size = len(tar)
    stored = pack("<BHH", _FINAL_STORED_BLOCK, size, size ^ 0xFFFF)
    blob = b"".join((_GZIP_HEADER, stored, tar, pack("<II", crc32(tar), size)))
    return Layer(blob, digest_of(blob), digest_of(tar))


@lru_cache(maxsize=_MOST_LINES)
def _header(size: int) -> bytes:
    fields = (
        b"app/data.txt".ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0" * 2,  # owner and group
        b"%011o\0" % size,
        b"%011o\0" % 1_583_000_000,  # modified at
        b" " * 8,  # in place of the checksum while it is computed
        b"0".ljust(101, b"\0"),  # type: a regular file; no link target
        b"ustar".ljust(6, b"\0") + b"00",
        b"root".ljust(32, b"\0") * 2,
        b"0000000\0" * 2,
    )
    header = b"".join(fields).ljust(_BLOCK, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def chain_id(parent: bytes, diff_id: bytes) -> bytes:
    """The OCI chain ID of a layer with diffID ``diff_id`` on ``parent``, which is empty for the lowest layer."""
    return digest_of(parent + b" " + diff_id) if parent else diff_id


def image_config(diff_ids: Sequence[bytes]) -> bytes:
    """The config of an image with these layers."""
    rootfs = {"type": "layers", "diff_ids": [d.decode() for d in diff_ids]}
    return _json({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})


def image_manifest(config: bytes, layers: Sequence[tuple[bytes, int]]) -> bytes:
    """The manifest of an image: its config and the digests and sizes of its layers."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": _descriptor("application/vnd.docker.container.image.v1+json", digest_of(config), len(config)),
            "layers": [_descriptor(DOCKER_LAYER_GZIP, digest, size) for digest, size in layers],
        }
    )


def _descriptor(media_type: str, digest: bytes, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "size": size, "digest": digest.decode()}


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
