"""Putting results into the documents, between their marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import live_report, offline
from benchmarks.machine import ROOT, describe
from benchmarks.model import Result, Run
from benchmarks.suite import Suite

README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"

GISTS: Mapping[str, Callable[[list[Result]], str]] = {offline.NAME: offline.table, live_report.NAME: live_report.gist}
"""What of a suite is shown in the README."""


def write(run: Run, suites: list[Suite]) -> None:
    """The tables and plots of all suites that the run has results of."""
    for suite in suites:
        results = run.of(suite.name)
        if not results:
            continue
        pictures = suite.plot(results, PLOTS) if suite.plot else []
        parts = [describe(run), suite.table(results)]
        parts += [f"![{path.stem}](plots/{path.name})" for path in pictures]
        insert(PERFORMANCE, suite.name, "\n\n".join(parts))
        if suite.name in GISTS:
            insert(README, suite.name, GISTS[suite.name](results))


def insert(document: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of a benchmark.  Raises ``ValueError`` for a document without them."""
    mark, end = f"<!-- benchmarks/{name}.py -->", f"<!-- /benchmarks/{name}.py -->"
    content, count = re.subn(
        f"{re.escape(mark)}.*?{re.escape(end)}", lambda _: f"{mark}\n{text}\n{end}", document.read_text(), flags=re.DOTALL
    )
    if not count:
        raise ValueError(f"{document} has no {mark}")
    document.write_text(content)
