"""The campaign of hostile input: all targets, by a loop of our own and guided by atheris."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.fuzz.guided import is_available, run_guided
from tests.fuzz.loop import run_loop
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.torture.campaign import Case

_GUIDED_FROM = 20_000
"""Inputs of a campaign from which on half of them are guided: less than that would be over before it gets anywhere."""
_LOOP = 500
"""Inputs in one case of the loop, at most."""


class Fuzz:
    """Bytes that nobody expects, in place of files, values and answers."""

    name = "fuzz"
    unit = "inputs"
    full = 100_000
    few = 2_500

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """For each target some runs of the loop, and one guided by atheris where that is installed and there is time for it."""
        guided = is_available() and count >= _GUIDED_FROM
        whole = sum(target.weight for target in TARGETS.values())
        for target in TARGETS.values():
            runs = max(1, count * target.weight // whole)
            if guided:
                runs //= 2
                yield Case(f"{target.name}/guided/{runs}", partial(_guided, target, seed, runs, directory), runs)
            for number, first in enumerate(range(0, runs, _LOOP)):
                some = min(_LOOP, runs - first)
                yield Case(f"{target.name}/loop/{number}/{some}", partial(run_loop, target, f"{seed} {number}", some), some)


def _guided(target: Target, seed: int, runs: int, directory: Path) -> None:
    save = directory / f"{target.name}.input"
    done = run_guided(target.name, seed & 0x7FFF_FFFF or 1, runs, 0, str(save))
    if done.returncode:
        data = save.read_bytes().hex() if save.exists() else ""
        raise AssertionError(f"{done.stdout[-3000:]}\nrepeat the input: python -m tests.fuzz {target.name} --hex {data}")
