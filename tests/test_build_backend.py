"""An old Python is refused before anything is downloaded for it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BACKEND = ROOT / "scripts" / "build_backend.py"
AS_ANOTHER = "import sys; sys.version_info = (3, {}, 13); import build_backend"


def test_an_old_python_is_refused_with_the_reason() -> None:
    command = [sys.executable, "-c", AS_ANOTHER.format(10)]
    done = subprocess.run(command, cwd=BACKEND.parent, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "asyncmig needs Python 3.11 or newer; this is Python 3.10.13\n")


def test_a_new_python_goes_on_to_hatchling(tmp_path: Path) -> None:
    (tmp_path / "hatchling").mkdir()
    (tmp_path / "hatchling" / "__init__.py").touch()
    (tmp_path / "hatchling" / "build.py").write_text("def build_wheel(): print('hatchling')")
    command = [sys.executable, "-c", f"{AS_ANOTHER.format(11)}; sys.path.append(''); build_backend.build_wheel()"]
    done = subprocess.run(
        command, cwd=BACKEND.parent, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "hatchling\n")


def test_old_versions_understand_it() -> None:
    ast.parse(BACKEND.read_text(), feature_version=(3, 7))


def test_nothing_is_installed_for_them_before() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert project["build-system"]["backend-path"] == ["scripts"]
    assert all(requirement.endswith("; python_version >= '3.11'") for requirement in project["build-system"]["requires"])
