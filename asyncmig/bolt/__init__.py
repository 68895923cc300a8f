"""The bbolt file format: reading, checking, editing and bulk building.  Knows nothing about what the files store."""

from asyncmig.bolt.bucket import Bucket
from asyncmig.bolt.build import BucketBuilder, build_bucket, build_file
from asyncmig.bolt.check import CheckResult, Finding, check, verify_pages
from asyncmig.bolt.contents import Contents, edit_buckets, nested_contents, read_contents, write_contents
from asyncmig.bolt.cursor import Cursor
from asyncmig.bolt.db import Db
from asyncmig.bolt.dump import dump
from asyncmig.bolt.fingerprint import content_digest
from asyncmig.bolt.format import BucketValue
from asyncmig.bolt.pagefile import PageFile
from asyncmig.bolt.rebuild import most_bytes_copied, rebuild
from asyncmig.bolt.tx import Tx
from asyncmig.bolt.uniform import UniformEdit
from asyncmig.bolt.walk import Checkpoint, Walker

__all__ = [
    "Bucket",
    "BucketBuilder",
    "BucketValue",
    "CheckResult",
    "Checkpoint",
    "Contents",
    "Cursor",
    "Db",
    "Finding",
    "PageFile",
    "Tx",
    "UniformEdit",
    "Walker",
    "build_bucket",
    "build_file",
    "check",
    "content_digest",
    "dump",
    "edit_buckets",
    "most_bytes_copied",
    "nested_contents",
    "read_contents",
    "rebuild",
    "verify_pages",
    "write_contents",
]
