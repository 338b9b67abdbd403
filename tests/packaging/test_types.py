"""The type checker really looks at all three folders: an error put into a copy is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import relaxprune

from .conftest import build_wheel, install_clean
from .repository import ROOT, clean_environment, export

BROKEN = ("relaxprune/cli/__init__.py", "problems/errors.py", "solvers/__init__.py")


def test_mypy_finds_an_injected_error_in_each_folder(tmp_path: Path) -> None:
    source = export(tmp_path / "source")
    for name in BROKEN:
        with (source / name).open("a", encoding="utf-8") as file:
            file.write('\n_INJECTED: int = "not a number"\n')
    (tmp_path / "dist").mkdir()
    broken = install_clean(build_wheel(source, tmp_path / "dist"), tmp_path / "environment")
    # With the cache of ``make types``, torch and transformers are not analysed again: seconds instead of half a minute.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache"), "--python-executable", str(broken.python), "-p", "relaxprune"),
        ],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if "_INJECTED" in line or "Incompatible types" in line]
    for name in BROKEN:
        tail = name if name.startswith("relaxprune/") else f"relaxprune/{name}"
        assert any(tail in line for line in found), f"mypy did not report {name}:\n{done.stdout}"


def test_every_package_says_that_it_is_typed() -> None:
    assert (Path(relaxprune.__file__).parent / "py.typed").is_file()
