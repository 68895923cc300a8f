"""What benchmarks measure, as it is kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
"""Raised when a field changes its meaning."""

Case = dict[str, str | int]


@dataclass(frozen=True)
class Result:
    """What was measured in one case of one suite.

    ``figures`` has the numbers by name, ``series`` those that come in groups, such as the time of each stage.  ``marks`` says
    what a reader must know of them: ``estimated``.
    """

    suite: str
    case: Case
    figures: dict[str, float]
    series: dict[str, dict[str, float]] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What is the same in another run of the same case."""
        return " ".join([self.suite, *(f"{name}={value}" for name, value in sorted(self.case.items()))])

    def is_case(self, **case: str | int) -> bool:
        """Whether the case is as given."""
        return all(self.case.get(name) == value for name, value in case.items())


@dataclass
class Run:
    """All results of one call, with what it ran on.

    ``left_out`` has a sentence for each thing that could not be measured here.
    """

    name: str
    started: str
    arguments: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    load_before: list[float]
    load_after: list[float] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def of(self, suite: str) -> list[Result]:
        """The results of a suite."""
        return [result for result in self.results if result.suite == suite]

    def save(self, directory: Path) -> Path:
        """Write the run into a file named after it and its date."""
        directory.mkdir(parents=True, exist_ok=True)
        date = self.started[:19].replace(":", "").replace("-", "")
        path = directory / f"{self.name}-{date}.json"
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        return path


def load(path: Path) -> Run:
    """The inverse of :meth:`Run.save`.  Raises ``ValueError`` for a file that is none."""
    stored = json.loads(path.read_text())
    if not isinstance(stored, dict) or stored.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not the results of a benchmark in format {FORMAT}")
    stored.pop("texts", None)  # older files have tables there, of what is now among the results
    results = [Result(**result) for result in stored.pop("results")]
    return Run(results=results, **stored)


def find(results: list[Result], **case: str | int) -> Result | None:
    """The first result of such a case."""
    return next((result for result in results if result.is_case(**case)), None)
