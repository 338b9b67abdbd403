"""The type checker really looks at all three folders: an error put into a copy is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import relaxprune

from .conftest import CleanInstall
from .repository import ROOT, clean_environment

BROKEN = ("relaxprune/cli/__init__.py", "relaxprune/problems/errors.py", "relaxprune/solvers/__init__.py")


def test_mypy_finds_an_injected_error_in_each_folder(clean_install: CleanInstall, tmp_path: Path) -> None:
    environment = shutil.copytree(clean_install.folder, tmp_path / "environment", symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    expected = []
    for name in BROKEN:
        lines = [*(site / name).read_text(encoding="utf-8").splitlines(), '_INJECTED: int = "not a number"']
        (site / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        expected.append(f"{name}:{len(lines)}: error: Incompatible types in assignment")
    # Dependencies are skipped: to read their types takes half a minute, and the injected errors do not hang on them.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "relaxprune"),
            *("--python-executable", str(environment / "bin" / "python")),
            *("--follow-imports", "skip", "--cache-dir", str(tmp_path / "cache")),
        ],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    for line in expected:
        assert line in done.stdout, f"mypy did not report {line}:\n{done.stdout}{done.stderr}"


def test_every_package_says_that_it_is_typed() -> None:
    assert (Path(relaxprune.__file__).parent / "py.typed").is_file()
