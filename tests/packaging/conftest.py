"""A clean environment with the package installed from a wheel, built once per session."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from .repository import clean_environment, export


@dataclass(frozen=True)
class CleanInstall:
    """A virtual environment that holds relaxprune from a wheel, and its dependencies by a path file."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.folder / "bin" / "python"

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the interpreter with ``arguments`` in a folder without sources, and return what it printed."""
        command = [str(self.python), *arguments]
        environment = clean_environment()
        return subprocess.run(
            command, cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=600
        )


def build_wheel(source: Path, target: Path) -> Path:
    """Build the wheel of the tree at ``source`` into ``target``, without the network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(target), str(source)],
        cwd=target,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("relaxprune-*.whl")
    return wheel


def install_clean(wheel: Path, folder: Path) -> CleanInstall:
    """Install ``wheel`` alone into a new environment, which then sees the dependencies of this one behind it."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*command, str(wheel)], cwd=folder, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return CleanInstall(folder, wheel)


@pytest.fixture(scope="session")
def clean_install(tmp_path_factory: pytest.TempPathFactory) -> CleanInstall:
    """Build the wheel from a copy of what git holds and install it in an environment of its own."""
    base = tmp_path_factory.mktemp("wheel")
    (base / "dist").mkdir()
    wheel = build_wheel(export(base / "source"), base / "dist")
    return install_clean(wheel, base / "environment")
