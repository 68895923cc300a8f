"""What is measured, called in a process of its own (:mod:`benchmarks.child`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import anyio

import asyncmig
from asyncmig import Options, Progress, Stage
from asyncmig.bolt import PageFile, check, verify_pages
from asyncmig.buildkit import keys
from asyncmig.buildkit.metadata import MetadataDb, Revision
from asyncmig.buildkit.record import Changes, Record
from asyncmig.migration.chains import blob_chain_id, chain_id
from asyncmig.migration.semantics import SEMANTICS
from benchmarks.machine import drop_caches


class StageCpu(Progress):
    """Counts the CPU time of each stage; what is done between two counts for the first of them.

    What is done before the first, such as importing the event loop, is ``start``.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = "start"
        self._since = process_time()

    def stage(self, stage: Stage, total: int | None) -> None:
        """The running stage has ended, and this one begins."""
        self.close()
        self._stage = stage

    def close(self) -> None:
        """The running stage has ended."""
        now = process_time()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._since = now


def migrate(worker: str, semantics: str, backend: str = "asyncio") -> dict[str, Any]:
    """A whole migration; returns wall and CPU seconds of each stage."""
    cpu = StageCpu()
    options = Options(semantics=SEMANTICS[semantics].name)
    report = anyio.run(partial(asyncmig.migrate, worker, options, progress=cpu), backend=backend)
    cpu.close()
    return {"seconds": report.seconds, "cpu": cpu.seconds, "records": report.counts.records}


# -- on a cold cache

LATE = ("anyio._backends._asyncio", "asyncmig.runs.migrate", "asyncmig.runs.verify")
"""Modules that are imported at the first call."""


def get_ready(is_cold: str) -> None:
    """Load what is not to be measured, then drop what the kernel has of all files if ``is_cold`` is not empty."""
    for name in LATE:
        import_module(name)
    if is_cold:
        drop_caches()


def call(verb: str, worker: str) -> dict[str, Any]:
    """Migrate, plan or verify a cache, or check its largest database; ``done`` tells whether anything was there to do it to."""
    if verb == "db check":
        return {"done": check(Path(worker) / "containerdmeta.db").keys > 0}
    if verb == "verify":
        return {"done": anyio.run(asyncmig.verify, worker).counts.records > 0}
    report = anyio.run(asyncmig.migrate if verb == "migrate" else asyncmig.plan, worker)
    return {"done": report.counts.records > 0, "seconds": report.seconds}


# -- the database of the records alone


def rebuild(source: str, target: str) -> dict[str, Any]:
    """Check and read a v1 database, and write the v2 database that it becomes, synced and checked; no store takes part."""
    clock = _Clock()
    with MetadataDb.open(source) as database:
        with clock.timed("check"):
            database.check()
        with clock.timed("read"):
            records = database.read()
        with clock.timed("change"):
            change(records)
            revision = Revision(records, {record.id: record for record in records})
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with clock.timed("write"):
                database.write(fd, target, revision)
            with clock.timed("check again"):
                verify_pages(PageFile(fd, target), lost_pages=True)
        finally:
            os.close(fd)
    return {"seconds": clock.seconds, "cpu": clock.cpu, "records": len(records)}


def change(records: list[Record]) -> None:
    """What a migration changes, with the record before for a parent, which gives values of the usual length."""
    parent = ""
    for record in records:
        record.changes |= Changes.COMMITTED | Changes.PARENT | Changes.SNAPSHOT
        record.parent = parent
        if record.blob_mapping:
            _change_layer(record, *record.blob_mapping)
        parent = record.id


def _change_layer(record: Record, blob: str, diff_id: str) -> None:
    record.blob, record.diff_id, record.media_type = blob, diff_id, keys.DOCKER_LAYER_GZIP
    record.chain_id, record.blob_chain_id = chain_id(diff_id), blob_chain_id(blob, diff_id)
    record.changes |= Changes.BLOB | Changes.CHAIN


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start, cpu = perf_counter(), process_time()
        yield
        self.seconds[name], self.cpu[name] = perf_counter() - start, process_time() - cpu


# -- the event loop beside a migration


TICK = 0.001


def lags(backend: str, worker: str, semantics: str, address: str = "") -> dict[str, list[float]]:
    """How much too late a task that sleeps a millisecond at a time wakes, in seconds: idle, and beside a migration."""
    options = Options(semantics=SEMANTICS[semantics].name, address=address or None)
    work = partial(asyncmig.migrate, worker, options)
    return {
        "idle": anyio.run(beside, partial(anyio.sleep, 2), backend=backend),
        "migration": anyio.run(beside, work, backend=backend),
    }


async def beside(work: Callable[[], Any]) -> list[float]:
    """Do some work; returns the lags in the meantime, ascending."""
    found: list[float] = []

    async def tick() -> None:
        while True:
            start = perf_counter()
            await anyio.sleep(TICK)
            found.append(perf_counter() - start - TICK)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await work()
        group.cancel_scope.cancel()
    return sorted(found)
