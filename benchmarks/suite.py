"""What the suites have in common."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.caches import Caches
from benchmarks.model import Result

PATIENCE = 90.0
"""Seconds after which a case is not repeated again."""


@dataclass
class Settings:
    """What is asked for.

    ``records`` is empty where each suite is to take its own sizes; ``large``: with the large ones.  ``places`` ("disk" is where
    ``scratch`` is, or "tmpfs") and ``concurrencies`` are for live migrations; no places are the suite's own.
    """

    scratch: Path
    records: Sequence[int] = ()
    large: bool = False
    repeat: int = 3
    baseline_limit: int | None = None
    backends: Sequence[str] = ("asyncio", "trio")
    places: Sequence[str] = ()
    concurrencies: Sequence[int] = (1, 16)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.caches = Caches(self.scratch)

    def sizes(self, usual: Sequence[int], large: Sequence[int] = ()) -> list[int]:
        """The sizes to measure: those asked for, or the suite's own."""
        return list(self.records) or [*usual, *(large if self.large else ())]

    def leave_out(self, what: str) -> None:
        """Note something that can't be measured here."""
        if what not in self.left_out:
            self.left_out.append(what)
            say(f"left out: {what}")

    def rounds(self) -> Iterator[int]:
        """Numbers of the rounds of a case; fewer than are asked for if they take long."""
        start = time.monotonic()
        for number in range(self.repeat):
            if number and time.monotonic() - start > PATIENCE:
                return
            yield number


@dataclass(frozen=True)
class Suite:
    """A subject.  ``measure`` yields results as they come; ``table`` has them as Markdown."""

    name: str
    measure: Callable[[Settings], Iterator[Result]]
    table: Callable[[list[Result]], str]
    plot: Callable[[list[Result], Path], list[Path]] | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    heading: str
    cell: Callable[[Result], str]


def markdown(columns: Sequence[Column], results: Sequence[Result]) -> str:
    """A table with a row for each result."""
    rows = [[column.cell(result) for column in columns] for result in results]
    return grid([column.heading for column in columns], rows)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def number(name: str, form: str = ",.0f", unit: str = "") -> Callable[[Result], str]:
    """A figure in a cell; nothing if it was not measured."""

    def cell(result: Result) -> str:
        return f"{result.figures[name]:{form}}{unit}" if name in result.figures else ""

    return cell


def label(name: str) -> Callable[[Result], str]:
    """A part of the case in a cell."""

    def cell(result: Result) -> str:
        value = result.case[name]
        return f"{value:,}" if isinstance(value, int) else value

    return cell


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def say(text: str) -> None:
    """Tell how far the benchmark is."""
    print(text, file=sys.stderr, flush=True)
