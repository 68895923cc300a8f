"""What a campaign is: many cases of one kind of trouble, each of which can be repeated by its name."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MEMORY_DISK = Path("/dev/shm")
"""Where the cases work if it is there: thousands of syncs on a real disk would take an hour and show nothing more."""


class Unavailable(Exception):
    """A campaign cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to be tried.  ``run`` raises ``AssertionError``, or whatever goes wrong, if it fails.

    ``name`` repeats it: with the same seed it is the same case, however many others are tried.  ``weight`` is what it counts
    for, where one run tries several things at once.
    """

    name: str
    run: Callable[[], object]
    weight: int = 1


class Campaign(ABC):
    """Cases of one kind.

    ``name`` is what ``--only`` takes, ``unit`` what is counted (states, kills), ``full`` how many a long run tries, and ``few``
    how many ``make test`` does.  ``without`` says, once the cases have begun, what they leave out here and why.
    """

    name: str
    unit: str
    full: int
    few: int
    without: str = ""

    @abstractmethod
    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """About ``count`` cases, spread evenly where there are more; they may use ``directory`` as they like, one at a time.

        Raises :class:`Unavailable`.
        """


@dataclass(slots=True)
class Tally:
    """What has become of a campaign."""

    name: str
    unit: str
    tried: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Name of the case, and the traceback."""
    seconds: float = 0.0
    left_out: str = ""


def run(
    campaign: Campaign,
    seed: int,
    count: int,
    *,
    only: str = "",
    give_up_after: int = 10,
    progress: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Try a campaign's cases, or the one with the name ``only``."""
    tally = Tally(campaign.name, campaign.unit)
    start = time.perf_counter()
    try:
        with scratch() as directory:
            for case in campaign.cases(directory, seed, count):
                if only and case.name != only:
                    continue
                try:
                    case.run()
                except Exception:
                    tally.failures.append((case.name, traceback.format_exc()))
                tally.tried += case.weight
                tally.seconds = time.perf_counter() - start
                progress(tally)
                if len(tally.failures) >= give_up_after:
                    break
            tally.left_out = campaign.without
    except Unavailable as reason:
        tally.left_out = str(reason)
    except Exception:
        tally.failures.append(("(between cases)", traceback.format_exc()))
    tally.seconds = time.perf_counter() - start
    return tally


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes with all in it."""
    with tempfile.TemporaryDirectory(prefix="asyncmig-torture-", dir=scratch_base(), ignore_cleanup_errors=True) as name:
        yield Path(name)


def scratch_base() -> Path | None:
    """Where to make temporary directories; ``None`` for the usual place."""
    return MEMORY_DISK if os.access(MEMORY_DISK, os.W_OK) else None


def spread(number: int, total: int, count: int) -> bool:
    """Whether the case with this number is one of ``count`` that lie evenly among ``total``."""
    return (number + 1) * count // total > number * count // total if count < total else True
