"""Names of buckets and keys in ``metadata.db`` and ``metadata_v2.db``.

Sources: moby/buildkit v0.6.4 ``cache/metadata.go``, ``snapshot/blobmapping/snapshotter.go``; v0.27.1 ``cache/metadata.go``.
"""

MAIN = b"_main"
"""One bucket per record."""
INDEX = b"_index"
"""Keys ``<index>::<record id>`` with empty values."""
EXTERNAL = b"_external"
"""One bucket per record, with raw bytes as values."""

# v1
EQUAL_MUTABLE = b"cache.equalMutable"
BLOB_MAPPING = b"blobmapping.blob"
DELETED = b"cache.deleted"
DESCRIPTION = b"cache.description"

# v2
COMMITTED = b"snapshot.committed"
PARENT = b"cache.parent"
SNAPSHOT = b"cache.snapshot"
DIFF_ID = b"cache.diffID"
BLOB = b"cache.blob"
MEDIA_TYPE = b"cache.mediatype"
BLOB_SIZE = b"cache.blobsize"
"""Since v0.8."""
CHAIN_ID = b"cache.chainID"
BLOB_CHAIN_ID = b"cache.blobChainID"

LAYER = (BLOB, DIFF_ID, MEDIA_TYPE, BLOB_SIZE)
"""The keys that describe the blob of a layer."""
CHAIN = (CHAIN_ID, BLOB_CHAIN_ID)

WRITTEN = frozenset({COMMITTED, PARENT, SNAPSHOT, *LAYER, *CHAIN})
"""The keys that any migration may write; a repair may write other keys, too."""

READ = frozenset({EQUAL_MUTABLE, BLOB_MAPPING, DELETED})
"""The v1 keys that a migration reads."""

CHAIN_INDEX = "chainid:"
BLOB_CHAIN_INDEX = "blobchainid:"

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
"""Every BuildKit that knows zstd knows this form; the Docker form came years later."""
