"""A full consistency check of a bolt file.

It finds what bbolt's ``Tx.Check`` finds, and what that takes on trust: bounds of every element, order of keys against the
branch above, inline buckets, element flags.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike

from asyncmig.bolt.ahead import read_ahead
from asyncmig.bolt.db import Db
from asyncmig.bolt.format import BUCKET_HEADER_SIZE, PAGE_HEADER, BucketValue
from asyncmig.bolt.pagefile import PageFile
from asyncmig.bolt.walk import Checkpoint, Walker, no_checkpoint
from asyncmig.errors import CorruptDatabaseError

MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.  ``page`` and ``mendable`` are as in :class:`CorruptDatabaseError`."""

    page: int | None
    cause: str
    mendable: bool = False

    def __str__(self) -> str:
        return self.cause if self.page is None else f"page {self.page}: {self.cause}"


@dataclass(slots=True)
class CheckResult:
    """What :func:`check` found, and how large the file's content is.

    ``findings`` stops at :data:`MAX_FINDINGS`; ``truncated`` tells that there were more.  ``notes`` are about what does no
    damage to the current state.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    truncated: bool = False
    page_size: int = 0
    pages: int = 0
    free_pages: int = 0
    buckets: int = 0
    keys: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def mendable(self) -> bool:
        """Whether all that is wrong is which pages are said to be free: the data are whole."""
        return all(finding.mendable for finding in self.findings)


class _TooManyFindings(Exception):
    pass


class _CollectingWalker(Walker):
    """A walker that notes problems and goes on behind them."""

    def __init__(self, pages: PageFile, result: CheckResult, checkpoint: Checkpoint) -> None:
        super().__init__(pages, checkpoint)
        self.result = result

    def problem(self, error: CorruptDatabaseError) -> None:
        self.add(error.page, error.detail, mendable=error.mendable)

    def add(self, page: int | None, cause: str, *, mendable: bool = False) -> None:
        if len(self.result.findings) >= MAX_FINDINGS:
            self.result.truncated = True
            raise _TooManyFindings
        self.result.findings.append(Finding(page, cause, mendable))


def check(path: str | PathLike[str], *, lock_timeout: float = 0.0, checkpoint: Checkpoint = no_checkpoint) -> CheckResult:
    """Check the whole file under a shared lock.

    Time and memory are bounded on any input: each page is read once, and memory is about a byte per page.  Raises
    :class:`DatabaseError` if the file cannot be opened or is locked; damage is reported in the result, not raised.
    Blocking: call it from a worker thread in an async program.
    """
    try:
        db = Db.open(path, lock_timeout=lock_timeout)
    except CorruptDatabaseError as error:
        return CheckResult(findings=[Finding(error.page, error.detail)])
    with db:
        return check_pages(db.pages, checkpoint=checkpoint) if db.pages else CheckResult()


def verify_pages(pages: PageFile, checkpoint: Checkpoint = no_checkpoint, *, lost_pages: bool = False) -> None:
    """Raise :class:`CorruptDatabaseError` for the first thing that :func:`check` would report, without ``lost_pages`` those
    excepted.

    Meant for a file that is about to be edited: copy-on-write trusts the freelist, so a page that is both free and in use
    would be overwritten.  A page that is neither wastes its space and nothing else, and bbolt leaves such pages in sound files:
    when a bucket is changed and deleted in one transaction, it forgets some of the buckets inside it (seen with 1.3.6).
    """
    result = check_pages(pages, checkpoint=checkpoint, lost_pages=lost_pages)
    if result.findings:
        first = result.findings[0]
        raise pages.corrupt(first.page, first.cause, mendable=result.mendable)


def check_pages(pages: PageFile, *, checkpoint: Checkpoint = no_checkpoint, lost_pages: bool = True) -> CheckResult:
    """:func:`check` for a file that is open already; ``lost_pages`` tells whether to report those neither free nor in use."""
    result = CheckResult(page_size=pages.page_size, pages=pages.high_water_mark)
    if pages.bad_meta:
        result.notes.append(pages.bad_meta)
    walker = _CollectingWalker(pages, result, checkpoint)
    read_ahead(pages, checkpoint)
    try:
        for leaf in walker.buckets(pages.meta.root):
            result.keys += len(leaf.keys)
            for value in leaf.values:
                if type(value) is BucketValue:
                    result.buckets += 1
                    result.keys += _inline_keys(value) - 1
        _check_freelist(walker, result)
        if lost_pages and not result.findings:  # pages behind a damaged branch would all be reported as lost
            _check_lost(walker)
    except _TooManyFindings:
        pass
    return result


def _inline_keys(value: BucketValue) -> int:
    """Keys of an inline bucket, as its header states them (the walker has checked them)."""
    return 0 if value.root else PAGE_HEADER.unpack_from(value, BUCKET_HEADER_SIZE)[2]


def _check_freelist(walker: _CollectingWalker, result: CheckResult) -> None:
    pages = walker.pages
    reachable = bytes(walker.seen)
    try:
        free = pages.freelist()
        if free is not None:
            pages.page(pages.meta.freelist, walker.mark)
    except CorruptDatabaseError as error:
        walker.add(error.page, error.detail, mendable=True)
        return
    if free is None:
        result.free_pages = reachable.count(0)
        walker.seen[:] = b"\1" * len(reachable)  # what is not in use is free, so none is lost
        return
    result.free_pages = len(free)
    for page_id in free:
        if walker.seen[page_id]:
            walker.add(page_id, "on the freelist although it is in use", mendable=True)
        walker.seen[page_id] = 1


def _check_lost(walker: _CollectingWalker) -> None:
    lost = walker.seen.find(0)
    while lost >= 0:
        walker.add(lost, "neither in use nor on the freelist", mendable=True)
        lost = walker.seen.find(0, lost + 1)
