"""Measuring work in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FRAME = """
import json, re, resource, sys, time
import anyio, asyncmig
extra = {{}}
def status(name):
    return int(re.search(name + ":\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
{setup}
before = status("RssAnon")
usage = resource.getrusage(resource.RUSAGE_SELF)
earlier = usage.ru_utime + usage.ru_stime
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
usage = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that is never less than what the process was that started this one.
cpu = usage.ru_utime + usage.ru_stime - earlier
print(json.dumps(dict(seconds=seconds, cpu=cpu, megabytes=status("VmHWM"), extra=extra, anonymous_before=before)))
"""

SAMPLE = 0.005
"""Seconds between two looks at the memory of a process: reading it takes well below a hundredth of that."""


@dataclass(frozen=True)
class Usage:
    """Wall and CPU seconds, peak memory in MB, and what the program put into ``extra``.

    ``anonymous`` is the peak of the memory that is no page of a file, ``anonymous_before`` what it was when the work began.
    """

    seconds: float
    cpu: float
    megabytes: float
    extra: dict[str, Any]
    anonymous_before: float
    anonymous: float


def run(work: str, *arguments: str, setup: str = "") -> Usage:
    """Run ``setup``, then ``work``, which is measured; both see ``arguments`` in ``sys.argv[1:]``."""
    program = FRAME.format(setup=setup, work=work)
    output, anonymous = watch([sys.executable, "-c", program, *arguments])
    return Usage(anonymous=anonymous, **json.loads(output))


def watch(command: Sequence[str]) -> tuple[str, float]:
    """Run a program; returns what it prints, and the peak of its anonymous memory in MB.

    Raises ``CalledProcessError`` if it fails.
    """
    peak = 0.0
    # A file, because nobody reads a pipe while the memory is looked at.
    with tempfile.TemporaryFile("w+") as printed, subprocess.Popen(command, stdout=printed) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(SAMPLE)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [command[0], "..."], output)
    return output, peak


def _anonymous(pid: int) -> float:
    """Anonymous memory of a process in MB; 0 if it has just ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = status.partition("RssAnon:")[2].split(maxsplit=1)
    return int(found[0]) / 1024 if found else 0.0
