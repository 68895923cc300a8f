"""How long the command takes that has next to nothing to do: what a user waits for, and a script that calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.model import Result
from benchmarks.suite import Column, Settings, Suite, label, markdown, medians, number, say

NAME = "startup"
RECORDS = 200
ROUNDS = 4
"""Rounds for each that is asked for: they are short, and what is measured here varies."""


def measure(settings: Settings) -> Iterator[Result]:
    """Python alone, ``--version``, and small caches; one after the other in each round."""
    records = min(settings.records, default=RECORDS)
    cache = settings.caches.of(min(records, RECORDS))
    size = f"{min(records, RECORDS)} records"
    cases: dict[str, tuple[Sequence[str], Callable[[], object]]] = {
        "python -c pass": (["-c", "pass"], lambda: None),
        "asyncmig --version": (["-m", "asyncmig", "--version"], lambda: None),
        f"asyncmig plan, {size}": (["-m", "asyncmig", "plan", str(cache.worker)], cache.restored),
        f"asyncmig migrate, {size}": (["-m", "asyncmig", "migrate", str(cache.worker)], cache.restored),
    }
    found: dict[str, list[dict[str, float]]] = {what: [] for what in cases}
    for turn in range(settings.repeat * ROUNDS):
        say(f"startup: round {turn + 1}")
        for what, (arguments, prepare) in cases.items():
            prepare()
            found[what].append(_run([sys.executable, *arguments]))
    for what, rounds in found.items():
        yield Result(NAME, {"what": what}, medians(rounds) | {"rounds": len(rounds)})


def _run(command: Sequence[str]) -> dict[str, float]:
    """Wall and CPU time of a command from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[1:3])
    return {"ms": seconds * 1e3, "cpu_ms": (usage.ru_utime + usage.ru_stime) * 1e3}


def table(results: list[Result]) -> str:
    """The results."""
    columns = [Column("command", label("what")), Column("ms", number("ms")), Column("CPU ms", number("cpu_ms"))]
    return markdown(columns, results)


SUITE = Suite(NAME, measure, table)
