"""atheris: mutations guided by what code they reach.  ``python -m tests.fuzz`` starts this in a process of its own.

libFuzzer, which is inside, ends the process as it likes, and leaves behind what it has not thrown away.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.torture.campaign import scratch_base

SCRATCH = "ASYNCMIG_FUZZ_SCRATCH"
"""Environment variable: where a process that is ended without a chance to tidy up has its files."""


def is_available() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def run_guided(name: str, seed: int, runs: int, seconds: int, save: str = "") -> subprocess.CompletedProcess[str]:
    """Run a target until it breaks a promise, or for so many inputs or seconds.

    The exit code is 0 if nothing was found; else the output ends with what was, and the input goes to ``save``.
    """
    with tempfile.TemporaryDirectory(prefix="asyncmig-fuzz-", dir=scratch_base(), ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(seed), str(runs), str(seconds), save]
        environment = os.environ | {SCRATCH: scratch}
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )


def _main(name: str, seed: str, runs: str, seconds: str, save: str) -> None:
    import atheris  # noqa: PLC0415  (not on every machine)

    with atheris.instrument_imports(include=["asyncmig"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415
    from tests.fuzz.loop import MEGABYTES, SECONDS, regressions, run_one  # noqa: PLC0415

    target = TARGETS[name]
    scratch = Path(os.environ[SCRATCH])
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, data in enumerate([*target.seeds(), *(path.read_bytes() for path in regressions(target))]):
        (corpus / f"seed{number:04}").write_bytes(data)
    # A larger limit than that of run_one(): it is for hangs in C, where no alarm is heard.
    limits = [f"-max_len={target.longest}", f"-timeout={3 * SECONDS}", f"-rss_limit_mb={8 * MEGABYTES}", f"-seed={seed}"]
    options = [f"-artifact_prefix={scratch}/", "-print_final_stats=1", "-verbosity=0", f"-atheris_runs={runs}"]
    if save:
        options.append(f"-exact_artifact_path={save}")
    if target.words:
        words = scratch / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        options.append(f"-dict={words}")
    if int(seconds):
        options.append(f"-max_total_time={seconds}")
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], lambda data: run_one(target, data))
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    _main(*sys.argv[1:])
