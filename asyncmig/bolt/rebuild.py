"""Rebuilding some buckets of a database into a new file, without touching the others.

Every page of the buckets that stay keeps its page id, so the kernel copies these pages as they are and nothing in them is
renumbered.  The new trees go into the slots between these pages, and after them.  One sync and a rename publish the result.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping

from asyncmig.bolt.build import BucketBuilder, Fill, finish_file
from asyncmig.bolt.format import BucketValue
from asyncmig.bolt.pagefile import PageFile
from asyncmig.bolt.space import PageWriter, Space, runs, write_all
from asyncmig.bolt.walk import Checkpoint, Walker, free_pages, no_checkpoint
from asyncmig.errors import DatabaseError

_COPY_CHUNK = 8 << 20
_COPY_GAP = 16
"""Copy up to so many unneeded pages between two runs along with them: another system call would cost as much."""
_NO_COPY_FILE_RANGE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY}


def rebuild(
    source: PageFile,
    fd: int,
    path: str,
    buckets: Mapping[bytes, Fill],
    *,
    keep: Iterable[int] = (),
    checkpoint: Checkpoint = no_checkpoint,
) -> None:
    """Write a copy of ``source``, in which the top-level ``buckets`` are built anew, into the empty file ``fd`` and sync it.

    ``keep`` has the root pages of trees inside a replaced bucket that the new bucket still refers to.  ``checkpoint`` is called
    often and may raise.  Raises :class:`CorruptDatabaseError` if what it copies is damaged, and :class:`DatabaseError` if it
    can't write; then throw the file away.
    """
    walker = Walker(source, checkpoint)
    top: dict[bytes, bytes] = {}
    sequences = {}
    for leaf in walker.leaves(source.meta.root):
        top.update(zip(leaf.keys, leaf.values, strict=True))
    for name, value in top.items():
        if isinstance(value, BucketValue):
            sequences[name] = value.sequence
    walker.seen[:] = bytes(len(walker.seen))
    _mark_kept(walker, [v for k, v in top.items() if k not in buckets], keep)
    kept = [i for i, used in enumerate(walker.seen) if used]
    _copy(source, fd, path, kept, checkpoint)

    end = kept[-1] + 1 if kept else 2
    free = (i for i in range(2, end) if not walker.seen[i])
    writer = PageWriter(fd, path, source.page_size, Space(free, end))
    for name, fill in buckets.items():
        builder = BucketBuilder(writer, sequences.get(name, 0))
        fill(builder)
        top[name] = builder.finish()
    root = BucketBuilder(writer)
    for name in sorted(top):
        root.put(name, top[name])
    meta = source.meta
    finish_file(writer, root.finish_pages(), sequence=meta.sequence, flags=meta.flags, txid=meta.txid + 1)


def most_bytes_copied(source: PageFile, checkpoint: Checkpoint = no_checkpoint) -> int:
    """How much of ``source`` a copy has at most, whichever buckets are built anew: what is free becomes a hole."""
    gaps = runs(free_pages(source, checkpoint))
    return (source.high_water_mark - sum(end - first for first, end in gaps if end - first > _COPY_GAP)) * source.page_size


def _mark_kept(walker: Walker, values: list[bytes], keep: Iterable[int]) -> None:
    for value in values:
        if isinstance(value, BucketValue) and value.root:
            walker.mark_buckets(value.root)
    for root in keep:
        walker.mark_buckets(root)


def _copy(source: PageFile, fd: int, path: str, kept: list[int], checkpoint: Checkpoint) -> None:
    size = source.page_size
    for first, end in _with_gaps(runs(kept)):
        for offset in range(first * size, end * size, _COPY_CHUNK):
            checkpoint()
            _copy_range(source, fd, path, offset, min(_COPY_CHUNK, end * size - offset))


def _with_gaps(page_runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    if not page_runs:
        return
    first, end = page_runs[0]
    for next_first, next_end in page_runs[1:]:
        if next_first - end > _COPY_GAP:
            yield first, end
            first = next_first
        end = next_end
    yield first, end


def _copy_range(source: PageFile, fd: int, path: str, offset: int, count: int) -> None:
    while count:
        try:
            copied = os.copy_file_range(source.fd, fd, count, offset, offset)
        except OSError as error:
            if error.errno not in _NO_COPY_FILE_RANGE:
                raise DatabaseError(path, f"cannot copy {count} bytes at {offset}: {error.strerror}") from error
            data = source.read(count, offset)
            write_all(fd, path, [data], offset)
            copied = len(data)
        if not copied:
            raise source.corrupt(offset // source.page_size, "the file ends within the page")
        offset += copied
        count -= copied
