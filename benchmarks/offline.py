"""How fast an offline migration is.

Makes synthetic caches, migrates each in a process of its own, and copies the same database files with a sync as the yardstick,
in the same run.  Prints a Markdown table; ``--readme`` puts it into the README.

    python -m benchmarks.offline [--records N ...] [--repeat N] [--readme]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from asyncmig.synth import synthesize
from benchmarks import child

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- benchmarks/offline.py -->"
END = "<!-- /benchmarks/offline.py -->"


@dataclass
class Run:
    """One migration: wall and CPU seconds, peak memory in MB, and the seconds of copying its databases."""

    seconds: float
    cpu: float
    megabytes: float
    copy: float


def copy_seconds(worker: Path, target: Path) -> float:
    """Copy the three databases and sync them: no migration can be faster."""
    start = time.perf_counter()
    for name in ("metadata.db", "containerdmeta.db", "snapshots/metadata.db"):
        out = target / name.replace("/", "-")
        subprocess.run(["cp", worker / name, out], check=True)
        fd = os.open(out, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - start


def measure(records: int, scratch: Path) -> Run:
    """Migrate one cache of ``records`` records."""
    worker = Path(synthesize(scratch / "runc-overlayfs", records=records, bare=True).directory)
    (scratch / "copy").mkdir()
    os.sync()
    copied = copy_seconds(worker, scratch / "copy")
    # What upstream's migration does, because that is what there are figures of to compare with.
    work = "anyio.run(asyncmig.migrate, sys.argv[1], asyncmig.Options(semantics='upstream'))"
    used = child.run(work, str(worker))
    return Run(used.seconds, used.cpu, used.megabytes, copied)


def table(results: dict[int, list[Run]]) -> str:
    """The medians as Markdown."""
    lines = [
        "| records | seconds | records/s | CPU µs a record | peak memory | against copying the files |",
        "|---|---|---|---|---|---|",
    ]
    for records, runs in results.items():
        seconds = statistics.median(r.seconds for r in runs)
        cpu = statistics.median(r.cpu for r in runs) / records * 1e6
        ratio = statistics.median(r.seconds / r.copy for r in runs)
        memory = max(r.megabytes for r in runs)
        lines.append(
            f"| {records:,} | {seconds:.1f} | {records / seconds:,.0f} | {cpu:.0f} | {memory:.0f} MB | {ratio:.0f} times |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Measure offline migrations.")
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readme", action="store_true", help="put the table into the README")
    arguments = parser.parse_args()
    results: dict[int, list[Run]] = {}
    for records in arguments.records:
        for _ in range(arguments.repeat if records < 100_000 else 1):
            with tempfile.TemporaryDirectory(dir=".") as scratch:
                results.setdefault(records, []).append(measure(records, Path(scratch)))
    text = table(results)
    print(text)
    if arguments.readme:
        pattern = re.compile(f"{re.escape(MARK)}.*?{re.escape(END)}", re.DOTALL)
        README.write_text(pattern.sub(f"{MARK}\n{text}\n{END}", README.read_text()))


if __name__ == "__main__":
    main()
