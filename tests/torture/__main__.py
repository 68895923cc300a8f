"""``make torture``: all campaigns at full length, and one table of what was tried and what was found.

``python -m tests.torture --help`` tells the options; a failure prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys

from tests.torture.campaign import Campaign, Tally, run
from tests.torture.campaigns import CAMPAIGNS


def main() -> int:
    """Run what is asked for; exit code 1 if anything failed."""
    options = _parser().parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    name, _, case = (options.only or "").partition(":")
    chosen = [campaign for campaign in CAMPAIGNS if name in ("", campaign.name)]
    print(f"seed {seed}")
    tallies = []
    for campaign in chosen:
        count = max(1, round(campaign.full * options.share))
        tallies.append(run(campaign, seed, count, only=case, progress=_show))
        _tell(tallies[-1], seed, options.share)
    print()
    print("\n".join(table(tallies)))
    required = os.environ.get("ASYNCMIG_REQUIRE_TOOLS") == "1"
    return int(any(t.failures or (required and t.left_out) for t in tallies))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description="Try to lose data, in thousands of ways.")
    names = ", ".join(campaign.name for campaign in CAMPAIGNS)
    parser.add_argument("--seed", type=int, help="repeat a run (default: another one each time)")
    parser.add_argument("--only", metavar="CAMPAIGN[:CASE]", help=f"one campaign, or one case of it: {names}")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of cases, 0.1 for a tenth (default: 1)")
    return parser


def _show(tally: Tally) -> None:
    if sys.stderr.isatty():
        print(f"\r{tally.campaign.name}: {tally.tried} {tally.campaign.unit}, {tally.seconds:.0f} s ", end="", file=sys.stderr)


def _tell(tally: Tally, seed: int, share: float) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    for case, trace in tally.failures:
        print(f"\nFAILED: {tally.campaign.name}: {case}\n{trace}")
        print(f"repeat: python -m tests.torture --seed {seed} --share {share:g} --only '{tally.campaign.name}:{case}'")


def table(tallies: list[Tally]) -> list[str]:
    """The summary."""
    lines = [f"{'campaign':<14} {'tried':>9} {'':<12} {'failed':>6} {'seconds':>8}"]
    for tally in tallies:
        campaign: Campaign = tally.campaign
        line = f"{campaign.name:<14} {tally.tried:>9,} {campaign.unit:<12} {len(tally.failures):>6} {tally.seconds:>8.0f}"
        lines.append(f"{line}  left out: {tally.left_out}" if tally.left_out else line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
