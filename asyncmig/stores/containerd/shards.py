"""All names, split into shards: for a List whose answer is too long.

A shard is a regular expression in containerd's filter language.  Names are split by their last characters, because related
names begin alike (``sha256:``) while their ends are as good as random.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

_NOTHING = -1
"""In place of a character: there is none, the id begins here."""
_LAST = 0x10FFFF
_USUAL_CUTS = [*range(ord("0"), ord("9") + 2), *range(ord("a"), ord("z") + 2)]
"""The cuts that are most likely to halve a shard: almost all ids consist of digits and small letters."""


def quoted(text: str) -> str:
    """A value in containerd's filter language: a Go string literal.

    A JSON string is one as long as no character beyond 16 bits is escaped, hence ``ensure_ascii=False``.
    """
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Shard:
    """The ids that end with ``ending`` and have a character from ``low`` to ``high``, both included, before it."""

    ending: str
    low: int
    high: int

    @property
    def is_single(self) -> bool:
        """Whether the shard can hold only one id."""
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
        """Two shards that together make up this one, which must not be a single id.  The one with the shorter ids is last.

        A caller that always continues with the last one soon reaches a single id.  So it ends even if the server calls every
        answer too long.
        """
        if self.low == self.high:
            return Shard(chr(self.low) + self.ending, _NOTHING, _LAST).halves()
        first, behind = bisect_right(_USUAL_CUTS, self.low), bisect_left(_USUAL_CUTS, self.high + 1)
        cut = _USUAL_CUTS[(first + behind) // 2] if first < behind else (self.low + self.high + 1) // 2
        return [Shard(self.ending, cut, self.high), Shard(self.ending, self.low, cut - 1)]


EVERYTHING = Shard("", _NOTHING, _LAST)
