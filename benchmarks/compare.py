"""A run against one that was saved."""

from __future__ import annotations

from benchmarks.model import Run

UNTOLD = frozenset({"rounds", "turns"})
"""Figures that say how it was measured, not what."""


def compare(before: Run, now: Run) -> str:
    """A Markdown table with the ratio of each figure that both have, after a warning if they are of different machines."""
    lines = [f"Against {before.name} of {before.started}, commit {before.versions.get('commit', 'unknown')}:", ""]
    different = [name for name in ("cpu", "cores", "file_system") if before.machine.get(name) != now.machine.get(name)]
    if different:
        lines += [f"**Not the same machine**: they differ in {', '.join(different)}.", ""]
    lines += ["| case | figure | before | now | ratio |", "|---|---|---|---|---|"]
    earlier = {result.key: result for result in before.results}
    for result in now.results:
        old = earlier.get(result.key)
        if old is not None:
            lines += _rows(result.key, old.figures, result.figures)
    suites, found = {result.suite for result in now.results}, {result.key for result in now.results}
    missing = [key for key, result in earlier.items() if key not in found and result.suite in suites]
    if missing:
        lines += ["", f"Not measured this time: {', '.join(missing)}."]
    return "\n".join(lines)


def _rows(key: str, before: dict[str, float], now: dict[str, float]) -> list[str]:
    return [
        f"| {key} | {name} | {_short(before[name])} | {_short(value)} | {_ratio(before[name], value)} |"
        for name, value in now.items()
        if name in before and name not in UNTOLD
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(before: float, now: float) -> str:
    return f"{now / before:.2f}" if before else ""
