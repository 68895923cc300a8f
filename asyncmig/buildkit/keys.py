"""Names of buckets and keys in ``metadata.db`` and ``metadata_v2.db``.

Sources: moby/buildkit v0.6.4 ``cache/metadata.go``, ``snapshot/blobmapping/snapshotter.go``; v0.27.1 ``cache/metadata.go``.
"""

MAIN = b"_main"
"""One bucket a record."""
INDEX = b"_index"
"""Keys ``<index>::<record id>`` with empty values."""

# v1
EQUAL_MUTABLE = b"cache.equalMutable"
BLOB_MAPPING = b"blobmapping.blob"

# v2
COMMITTED = b"snapshot.committed"
PARENT = b"cache.parent"
SNAPSHOT = b"cache.snapshot"
DIFF_ID = b"cache.diffID"
BLOB = b"cache.blob"
MEDIA_TYPE = b"cache.mediatype"
CHAIN_ID = b"cache.chainID"
BLOB_CHAIN_ID = b"cache.blobChainID"

WRITTEN = frozenset({COMMITTED, PARENT, SNAPSHOT, DIFF_ID, BLOB, MEDIA_TYPE, CHAIN_ID, BLOB_CHAIN_ID})
"""All keys that a migration may write."""

CHAIN_INDEX = "chainid:"
BLOB_CHAIN_INDEX = "blobchainid:"

DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
