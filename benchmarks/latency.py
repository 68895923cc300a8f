"""How long calls take, in buckets."""

from __future__ import annotations

import math
from dataclasses import dataclass

_PER_DECADE = 20
"""Buckets for each power of ten: each is 12 % wider than the one before."""


def bucket_of(seconds: float) -> int:
    """The number of the bucket that a time falls into."""
    return math.ceil(math.log10(max(seconds, 1e-9) * 1e6) * _PER_DECADE)


@dataclass(frozen=True)
class Latencies:
    """The calls of one verb: for each bucket its upper bound in microseconds and how many there were, in order.

    Buckets in between that nothing fell into are there, too, for the gaps to be seen.
    """

    verb: str
    buckets: list[tuple[float, int]]

    @classmethod
    def of(cls, verb: str, counts: dict[int, int]) -> Latencies:
        """From the number of calls in each bucket."""
        numbers = range(min(counts), max(counts) + 1)
        return cls(verb, [(round(10 ** (number / _PER_DECADE), 1), counts.get(number, 0)) for number in numbers])

    @property
    def calls(self) -> int:
        """All calls."""
        return sum(count for _, count in self.buckets)

    def percentile(self, percent: float) -> float:
        """The bound, in microseconds, that this part of the calls did not exceed."""
        wanted, seen = math.ceil(self.calls * percent / 100), 0
        for bound, count in self.buckets:
            seen += count
            if seen >= wanted:
                return bound
        return 0.0
