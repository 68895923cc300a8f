"""How much longer it takes when nothing of the files is in memory, as it is with a migration: that runs once.

Each verb runs in a process of its own, once with all files in the page cache and once after the kernel was told to forget all
files, directories and inodes; Python and its modules are loaded in both.  Beside that stands the time to read the databases
once from front to back on a cold cache, which nobody can save.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import child
from benchmarks.caches import DATABASES, RESULTS, PreparedCache
from benchmarks.machine import DROP_CACHES, drop_caches
from benchmarks.model import Result
from benchmarks.suite import Column, Settings, Suite, label, markdown, medians, number, say

NAME = "cold"
VERBS = {
    "db check": ("containerdmeta.db",),
    "plan": DATABASES,
    "migrate": DATABASES,
    "verify": RESULTS,
}
"""In the order in which they can be called on one cache, and the databases that each goes through."""
ALLOWED = 1.5
"""How many times the warm run a cold one may take, the reading of the databases aside."""
BLOCK = 1 << 20
SETUP = "from benchmarks.tasks import call, get_ready; get_ready(sys.argv[3])"


def measure(settings: Settings) -> Iterator[Result]:
    """All sizes, nothing without the right to drop the caches."""
    reason = unavailable()
    if reason is not None:
        settings.leave_out(f"cold, because {reason}")
        return
    for records in settings.sizes([10_000], [100_000]):
        yield from _measure_size(settings, records)


def unavailable() -> str | None:
    """Why caches can't be dropped here."""
    try:
        drop_caches()
    except OSError as error:
        return f"{DROP_CACHES} can't be written, which takes root: {error.strerror}"
    return None


def _measure_size(settings: Settings, records: int) -> Iterator[Result]:
    cache = settings.caches.of(records)
    found: dict[str, list[dict[str, float]]] = {verb: [] for verb in VERBS}
    stages: list[dict[str, dict[str, float]]] = []
    for turn in settings.rounds():
        say(f"cold: {records:,} records, round {turn + 1}")
        warm, cold = _run_all(cache, is_cold=False), _run_all(cache, is_cold=True)
        for verb, names in VERBS.items():
            read = _read_seconds([cache.worker / name for name in names])
            found[verb].append(figures(warm[verb].seconds, cold[verb].seconds, read))
        stages.append({"warm": warm["migrate"].extra["seconds"], "cold": cold["migrate"].extra["seconds"]})
    for verb, rounds in found.items():
        series = {name: medians([stage[name] for stage in stages]) for name in stages[0]} if verb == "migrate" else {}
        yield Result(NAME, {"what": verb, "records": records}, medians(rounds) | {"rounds": len(rounds)}, series)


def _run_all(cache: PreparedCache, *, is_cold: bool) -> dict[str, child.Usage]:
    """Every verb on a cache as it was made."""
    worker = cache.restored()
    found = {}
    for verb in VERBS:
        if not is_cold:
            _read_all(worker)
        arguments = (verb, str(worker), "cold" if is_cold else "")
        used = child.run("extra.update(call(*sys.argv[1:3]))", *arguments, setup=SETUP)
        if not used.extra["done"]:
            raise RuntimeError(f"{verb} has not done what is measured")
        found[verb] = used
    return found


def figures(warm: float, cold: float, read: float) -> dict[str, float]:
    """How the times of one command compare."""
    return {
        "cold_seconds": cold,
        "warm_seconds": warm,
        "read_seconds": read,
        "times_warm": cold / warm,
        "of_allowed": cold / (ALLOWED * warm + read),
    }


def _read_all(directory: Path) -> None:
    """Bring everything into memory."""
    for path in directory.rglob("*"):
        if path.is_file():
            _read(path)


def _read_seconds(files: list[Path]) -> float:
    """How long it takes to read the files from front to back on a cold cache."""
    drop_caches()
    start = time.perf_counter()
    for path in files:
        _read(path)
    return time.perf_counter() - start


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        block = bytearray(BLOCK)
        while file.readinto(block):
            pass


def table(results: list[Result]) -> str:
    """The results."""
    columns = [
        Column("records", label("records")),
        Column("command", label("what")),
        Column("cold, seconds", number("cold_seconds", ",.2f")),
        Column("warm", number("warm_seconds", ",.2f")),
        Column("to read the databases", number("read_seconds", ",.2f")),
        Column("cold against warm", number("times_warm", ",.2f", " times")),
        Column("of 1.5 times warm and reading", number("of_allowed", ".0%")),
    ]
    return markdown(columns, results)


SUITE = Suite(NAME, measure, table)
