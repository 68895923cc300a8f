"""What is committed of containerd's messages is what the compiler makes of ``protos/``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import asyncmig

ROOT = Path(__file__).parents[3]
COMMITTED = Path(asyncmig.__file__).parent / "stores" / "containerd" / "_pb"


def sources(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(directory)): path.read_text() for path in files}


def test_the_generated_code_is_what_the_protos_say(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "compile_protos.py", tmp_path / "_pb"], check=True)
    assert sources(tmp_path / "_pb") == sources(COMMITTED)
