"""The baselines: programs in Go that do with the real bbolt what upstream's migration does, one commit for each call.

They are built when they are needed, once for each state of their sources and version of Go, below ``.build/`` beside this file.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.interop.boltool import build_go_program, find_go

HERE = Path(__file__).parent
BUILT = HERE / ".build"


def unavailable() -> str | None:
    """Why no baseline can be built here, ``None`` if they can."""
    return find_go()


def program(name: str) -> Path:
    """The program whose sources are in the directory ``name`` here.  Raises :class:`BoltToolError` if they don't compile."""
    source = HERE / name
    directory = BUILT / _fingerprint(source)
    if not (directory / name).exists():
        BUILT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as scratch:
            made = build_go_program(source, Path(scratch))
            directory.mkdir(exist_ok=True)
            shutil.move(made, directory / name)  # complete or not at all: another benchmark may be looking
    return directory / name


def go_version() -> str:
    """The version of Go, "" if it is not installed."""
    if shutil.which("go") is None:
        return ""
    return subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()[2].removeprefix("go")


def _fingerprint(source: Path) -> str:
    digest = hashlib.sha256(go_version().encode())
    for path in sorted(source.glob("*.go")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
