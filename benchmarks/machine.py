"""What a benchmark runs on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asyncmig import __version__
from benchmarks import baseline
from benchmarks.model import Run

ROOT = Path(__file__).parents[1]


def machine(scratch: Path) -> dict[str, Any]:
    """Processors, memory, kernel, and the file system that is worked on with the time that a sync of a page takes there."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _find(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.machine(),
        "memory_mb": int(_find(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0) // 1024,
        "kernel": platform.release(),
        "file_system": file_system(scratch),
        "sync_us": round(sync_seconds(scratch) * 1e6, 1),
    }


def versions() -> dict[str, str]:
    """The programs that take part; those that are not installed are left out."""
    found = {
        "python": platform.python_version(),
        "asyncmig": __version__,
        "commit": commit(),
        "anyio": _package("anyio"),
        "trio": _package("trio"),
        "go": baseline.go_version(),
        "bbolt": _output("dpkg-query", "-W", "-f", "${Version}", "golang-github-coreos-bbolt-dev"),
        "containerd": "".join(_output("containerd", "--version").split(" ")[2:3]),
    }
    return {name: value for name, value in found.items() if value}


def load_average() -> list[float]:
    """How busy the machine has been in the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def commit() -> str:
    """The commit that is measured, with a plus sign if files have changed since; "" outside of a clone."""
    name = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = name and _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{name}+" if changed else name


def file_system(path: Path) -> str:
    """The type of the file system that ``path`` is on."""
    return _output("df", "--output=fstype", str(path)).split("\n")[-1]


def sync_seconds(directory: Path, count: int = 200) -> float:
    """The median time of writing a page and syncing it."""
    times = []
    fd = os.open(directory / "sync", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        os.pwrite(fd, bytes(1 << 20), 0)
        os.fsync(fd)
        for i in range(count):
            os.pwrite(fd, os.urandom(4096), i % 256 * 4096)
            start = time.perf_counter()
            os.fdatasync(fd)
            times.append(time.perf_counter() - start)
    finally:
        os.close(fd)
        os.unlink(directory / "sync")
    return statistics.median(times)


DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> None:
    """Have the kernel forget what it has of all files, directories and inodes, which only root may."""
    os.sync()
    DROP_CACHES.write_text("3")


def describe(run: Run) -> str:
    """What a run was made on, as two sentences."""
    machine, versions = run.machine, run.versions
    tools = "".join(f", {name} {versions[name]}" for name in ("go", "bbolt", "containerd") if name in versions)
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_mb'] / 1024:.0f} GB, Linux {machine['kernel']}, "
        f"{machine['file_system']} (a sync of 4 KiB takes {machine['sync_us']:.0f} µs), Python {versions['python']}{tools}; "
        f"asyncmig {versions['asyncmig']}{' at ' + versions['commit'] if versions.get('commit') else ''}. "
        f"Load average {run.load_before[0]} before, {run.load_after[0]} after."
    )


def _find(pattern: str, path: str) -> str:
    match = re.search(pattern, Path(path).read_text())
    return match[1].strip() if match else ""


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    """What a program prints, "" if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
