"""Compile protos/ into a package directory.

    python scripts/compile_protos.py DIRECTORY

What is in DIRECTORY before is removed.  The output depends on the versions of the compiler and of ruff, which pyproject.toml
pins.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[1] / "protos"


def compile_protos(target: Path) -> None:
    """Replace the package in ``target``."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    command += [f"--python_betterproto2_out={target}", "--python_betterproto2_opt=client_generation=async"]
    # protoc finds its plugin, and the plugin finds ruff, beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run([*command, *files], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    for stale in target.rglob("__pycache__"):
        shutil.rmtree(stale)


if __name__ == "__main__":
    compile_protos(Path(sys.argv[1]))
