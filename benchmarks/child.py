"""Measuring a migration in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

FRAME = """
import json, re, resource, sys, time
import anyio, asyncmig
extra = {{}}
{setup}
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
usage = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that is never less than what the process was that started this one.
peak = int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([seconds, usage.ru_utime + usage.ru_stime, peak, extra]))
"""


@dataclass(frozen=True)
class Usage:
    """Wall and CPU seconds, peak memory in MB, and what the program put into ``extra``."""

    seconds: float
    cpu: float
    megabytes: float
    extra: dict[str, Any]


def run(work: str, *arguments: str, setup: str = "") -> Usage:
    """Run ``setup``, then ``work``, which is measured; both see ``arguments`` in ``sys.argv[1:]``."""
    program = FRAME.format(setup=setup, work=work)
    done = subprocess.run([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return Usage(*json.loads(done.stdout))
