"""A small loop of our own: seeded mutations of the corpus, for where atheris is not."""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 120
"""That one input may take; all take milliseconds, but a machine may be busy."""
MEGABYTES = 256
"""By which one input may make the process larger."""


class BrokenPromise(AssertionError):
    """What went wrong, and the input that shows it."""


class _Late(BaseException):
    """A hang.  Nothing in between takes it for an error."""


def regressions(target: Target) -> list[Path]:
    """The inputs that have once shown a defect."""
    return sorted((CORPUS / target.name).glob("*"))


def run_one(target: Target, data: bytes) -> None:
    """Run one input within its limits.  Raises :class:`BrokenPromise`."""
    before = _peak()
    try:
        with _alarm():
            target.run(data)
    except (Exception, _Late) as error:
        raise BrokenPromise(f"{type(error).__name__}: {error}; {_repeat(target, data)}") from error
    grown = _peak() - before
    if grown > MEGABYTES << 20:
        raise BrokenPromise(f"{grown >> 20} MB of memory; {_repeat(target, data)}")


def _repeat(target: Target, data: bytes) -> str:
    return f"python -m tests.fuzz {target.name} --hex {data.hex()}"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _alarm() -> Iterator[None]:
    def on_alarm(_number: int, _frame: FrameType | None) -> None:
        raise _Late(f"not done after {SECONDS} seconds")

    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def inputs(target: Target, seed: str) -> Iterator[bytes]:
    """Inputs without end: mutations of the seeds, and of what came of them."""
    r = random.Random(seed)
    pool = list(target.seeds())
    while True:
        data = mutated(r, pool, target)
        if r.random() < 0.02:
            pool.append(data)
        yield data


def mutated(r: random.Random, pool: Sequence[bytes], target: Target) -> bytes:
    """A copy of one of ``pool`` with some changes."""
    data = bytearray(r.choice(pool))
    for _ in range(r.choice((1, 1, 2, 4, 8))):
        at = r.randrange(len(data) + 1)
        match r.randrange(7):
            case 0:
                data[at : at + 1] = bytes([r.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << r.randrange(8)])
            case 2:
                del data[at : at + r.choice((1, 1, 2, 8, 64))]
            case 3:
                data[at:at] = r.randbytes(r.choice((1, 2, 7, 14)))
            case 4:
                other = r.choice(pool)
                start = r.randrange(len(other) + 1)
                data[at:at] = other[start : start + r.randrange(1, 64)]
            case 5:
                data[at:at] = data[at : at + r.randrange(1, 64)] * r.choice((1, 1, 1, 20))
            case 6 if target.words:
                word = r.choice(target.words)
                data[at : at + r.choice((0, 1, len(word)))] = word
    return bytes(data[: target.longest])


def run_loop(
    target: Target, seed: str, runs: int, *, seconds: float = float("inf"), tell: Callable[[int], None] = lambda _: None
) -> int:
    """Run so many inputs, or for so long; returns how many.  Raises :class:`BrokenPromise`."""
    end = time.monotonic() + seconds
    count = 0
    for data in inputs(target, seed):
        if count >= runs or time.monotonic() >= end:
            break
        run_one(target, data)
        count += 1
        tell(count)
    return count
