"""All names there are, in parts: for a List whose answer is too long, by regular expressions in containerd's filter language.

By their ends, because names that belong together begin alike (``sha256:``) and their ends are as good as random.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

_NOTHING = -1
"""Stands before the first character: there is none."""
_LAST = 0x10FFFF
_USUAL_CUTS = [*range(ord("0"), ord("9") + 2), *range(ord("a"), ord("z") + 2)]
"""Where halving is most likely to halve: almost all ids are written with digits and small letters."""


def quoted(text: str) -> str:
    """A value in containerd's filter language: a Go string literal.  JSON's are such, but for characters beyond 16 bits."""
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Shard:
    """The ids that end with ``ending``, and whose character before it is from ``low`` to ``high``, both included."""

    ending: str
    low: int
    high: int

    @property
    def is_single(self) -> bool:
        """Whether it is but one id."""
        return self.high == _NOTHING

    def filters(self) -> list[str]:
        """Filters for a List of leases."""
        if self == EVERYTHING:
            return []
        choices = ["^"] if self.low == _NOTHING else []
        if not self.is_single:
            choices.append(f"[\\x{{{max(self.low, 0):X}}}-\\x{{{self.high:X}}}]")
        pattern = f"(?:{'|'.join(choices)}){re.escape(self.ending)}$"
        return [f"id~={quoted(pattern)}"]

    def halves(self) -> list[Shard]:
        """Two shards that make up this one, which is not a single id; the one with the shorter ids last.

        Whoever goes on with the last one comes to a single id before long, and so to an end, even where every answer is said
        to be too long.
        """
        if self.low == self.high:
            return Shard(chr(self.low) + self.ending, _NOTHING, _LAST).halves()
        first, behind = bisect_right(_USUAL_CUTS, self.low), bisect_left(_USUAL_CUTS, self.high + 1)
        cut = _USUAL_CUTS[(first + behind) // 2] if first < behind else (self.low + self.high + 1) // 2
        return [Shard(self.ending, cut, self.high), Shard(self.ending, self.low, cut - 1)]


EVERYTHING = Shard("", _NOTHING, _LAST)
