"""``python -m tests.fuzz TARGET``: guided by atheris where it is installed, otherwise by a loop of our own.

``python -m tests.fuzz TARGET FILE...`` runs single inputs again.  The exit code is 0 if no promise was broken.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.fuzz.guided import is_available, run_guided
from tests.fuzz.loop import BrokenPromise, run_loop, run_one
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run what is asked for."""
    options = _parser().parse_args()
    seed = random.randrange(1, 1 << 31) if options.seed is None else options.seed
    single = [bytes.fromhex(text) for text in options.hex] + [Path(name).read_bytes() for name in options.files]
    if not single and not options.loop and is_available():
        done = run_guided(options.target, seed, options.runs or -1, options.seconds, options.save)
        print(done.stdout)
        return done.returncode
    target = TARGETS[options.target]
    if single:
        for data in single:
            run_one(target, data)
        return 0
    print(f"seed {seed}")
    try:
        count = run_loop(target, str(seed), options.runs or sys.maxsize, seconds=options.seconds or float("inf"))
    except BrokenPromise as error:
        if options.save:
            Path(options.save).write_bytes(bytes.fromhex(str(error).rpartition(" ")[2]))
        raise
    print(f"{target.name}: {count} inputs")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feed a target bytes that nobody expects.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("files", nargs="*", metavar="FILE", help="inputs to run again, one by one")
    parser.add_argument("--hex", action="append", default=[], help="an input to run again")
    parser.add_argument("--runs", type=int, default=0, help="how many inputs (default: no limit)")
    parser.add_argument("--seconds", type=int, default=0, help="for how long (default: no limit)")
    parser.add_argument("--seed", type=int, help="repeat a run")
    parser.add_argument("--loop", action="store_true", help="don't use atheris")
    parser.add_argument("--save", default="", metavar="FILE", help="where to put an input that breaks a promise")
    return parser


if __name__ == "__main__":
    sys.exit(main())
