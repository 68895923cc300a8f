"""``make torture``: all campaigns at full length, and one table of what was tried and what was found.

``python -m tests.torture --help`` tells the options; a failure prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.torture.campaign import Tally
from tests.torture.campaigns import NAMES, run_by_name


def main() -> int:
    """Run what is asked for; exit code 1 if anything failed."""
    options = _parser().parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    names, _, case = (options.only or "").partition(":")
    chosen = names.split(",") if names else NAMES
    if unknown := set(chosen) - set(NAMES):
        sys.exit(f"no such campaign: {', '.join(sorted(unknown))}")
    print(f"seed {seed}", flush=True)
    tallies = []
    for tally in _tallies(chosen, seed, options.share, case, options.jobs):
        tallies.append(tally)
        _tell(tally, seed, options.share)
    tallies.sort(key=lambda tally: NAMES.index(tally.name))
    print()
    print("\n".join(table(tallies)))
    required = os.environ.get("ASYNCMIG_REQUIRE_TOOLS") == "1"
    return int(any(t.failures or (required and t.left_out) for t in tallies))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description="Try to lose data, in thousands of ways.")
    parser.add_argument("--seed", type=int, help="repeat a run (default: another one each time)")
    parser.add_argument("--only", metavar="CAMPAIGN,...[:CASE]", help=f"some of {', '.join(NAMES)}, or one case of one")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of cases, 0.1 for a tenth (default: 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="campaigns at a time (default: one a processor)")
    return parser


def _tallies(names: list[str], seed: int, share: float, case: str, jobs: int) -> Iterator[Tally]:
    """Each in a process of its own: they fork, and put other functions in the place of Python's."""
    if len(names) == 1:
        yield run_by_name(names[0], seed, share, case, _show)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run_by_name, name, seed, share, case) for name in names]):
            yield done.result()


def _show(tally: Tally) -> None:
    if sys.stderr.isatty():
        print(f"\r{tally.name}: {tally.tried} {tally.unit}, {tally.seconds:.0f} s \033[K", end="", file=sys.stderr)


def _tell(tally: Tally, seed: int, share: float) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(f"{tally.name}: {tally.tried:,} {tally.unit}, {len(tally.failures)} failed, {tally.seconds:.0f} s", flush=True)
    for case, trace in tally.failures:
        print(f"\nFAILED: {tally.name}: {case}\n{trace}")
        print(f"repeat: python -m tests.torture --seed {seed} --share {share:g} --only '{tally.name}:{case}'", flush=True)


def table(tallies: list[Tally]) -> list[str]:
    """The summary."""
    lines = [f"{'campaign':<15} {'tried':>8} {'':<12} {'failed':>6} {'seconds':>8}"]
    for tally in tallies:
        line = f"{tally.name:<15} {tally.tried:>8,} {tally.unit:<12} {len(tally.failures):>6} {tally.seconds:>8.0f}"
        lines.append(f"{line}  left out: {tally.left_out}" if tally.left_out else line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
