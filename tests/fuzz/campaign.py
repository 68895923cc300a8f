"""The campaign of hostile input: all targets, by a loop of our own and guided by atheris."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from asyncmig.buildkit import gojson
from asyncmig.buildkit.gojson import GoJSONError
from tests.fuzz.guided import is_available, run_guided
from tests.fuzz.loop import inputs, run_loop
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.interop.boltool import build_go_program, find_go
from tests.interop.test_gojson_interop import ask, our_answer
from tests.torture.campaign import Campaign, Case

_LONG = 20_000
"""Inputs of a campaign from which on half of them are guided: less than that would be over before it gets anywhere."""
_LOOP = 500
"""Inputs in one case of the loop, at most."""


class Fuzz(Campaign):
    """Bytes that nobody expects, in place of files, values and answers."""

    name = "fuzz"
    unit = "inputs"
    full = 60_000
    few = 2_000

    def cases(self, directory: Path, seed: int, count: int) -> Iterator[Case]:
        """For each target some runs of the loop; in a long campaign half of it guided by atheris, and values shown to Go."""
        guided, go = is_available() and count >= _LONG, find_go()
        if count >= _LONG:
            self.without = " and ".join(filter(None, (go, None if guided else "atheris is not installed")))
        whole = sum(target.weight for target in TARGETS.values())
        for target in TARGETS.values():
            runs = max(1, count * target.weight // whole)
            if guided:
                runs //= 2
                yield Case(f"{target.name}/guided/{runs}", partial(_guided, target, seed, runs, directory), runs)
            for number, first in enumerate(range(0, runs, _LOOP)):
                some = min(_LOOP, runs - first)
                yield Case(f"{target.name}/loop/{number}/{some}", partial(run_loop, target, f"{seed} {number}", some), some)
        if count >= _LONG and go is None:
            yield Case(f"json/go/{count // 5}", partial(_as_go_does, directory, seed, count // 5), count // 5)


def _guided(target: Target, seed: int, runs: int, directory: Path) -> None:
    save = directory / f"{target.name}.input"
    done = run_guided(target.name, seed & 0x7FFF_FFFF or 1, runs, 0, str(save))
    if done.returncode:
        data = save.read_bytes().hex() if save.exists() else ""
        raise AssertionError(f"{done.stdout[-3000:]}\nrepeat the input: python -m tests.fuzz {target.name} --hex {data}")


def _as_go_does(directory: Path, seed: int, count: int) -> None:
    """Values are read as Go reads them."""
    program = build_go_program(Path(__file__).parents[1] / "interop" / "gojson", directory)
    values = [data for data in itertools.islice(inputs(TARGETS["json"], f"{seed} go"), count) if not _is_deep(data)]
    theirs = ask(program, [f"decode {data.hex()}" for data in values])
    for data, answer in zip(values, theirs, strict=True):
        assert our_answer(data) == answer, data


def _is_deep(data: bytes) -> bool:
    """Go takes 10,000 levels, Python's decoder about a thousand."""
    try:
        gojson.decode(data)
    except GoJSONError as error:
        return "nested too deeply" in str(error)
    return False
