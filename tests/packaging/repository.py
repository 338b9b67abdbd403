"""What the packaging tests share: the repository's files, its package list and its modules as source."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Modules for hosts that are not in this environment; their tests run in their own (``make test-llm-compressor``,
# ``make test-guests``).
GUESTS = ("relaxprune.adapters.llm_compressor", "relaxprune.adapters.model_optimizer")


@functools.cache
def project() -> dict[str, object]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def setuptools_table() -> dict[str, object]:
    """Return the table ``tool.setuptools`` of pyproject.toml."""
    tool = project()["tool"]
    assert isinstance(tool, dict)
    table = tool["setuptools"]
    assert isinstance(table, dict)
    return table


def packages() -> list[str]:
    """Return the names of the packages that are installed."""
    names = setuptools_table()["packages"]
    assert isinstance(names, list)
    return names


def tracked_files() -> list[Path]:
    """Return the files of the working tree that git holds or would add, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    names = sorted({name for name in done.stdout.split("\0") if name})
    return [Path(name) for name in names if (ROOT / name).is_file()]


def export(target: Path) -> Path:
    """Copy what git holds of the working tree to ``target``: stale build folders and ignored files stay behind."""
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would change which packages Python finds."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@dataclass(frozen=True)
class Module:
    """One Python file of the library: its installed dotted name, its path in the repository, its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    def imports(self) -> Iterator[str]:
        """Yield the dotted name behind every import, ``from a import b`` as ``a.b``, relative ones resolved."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = self.package.split(".")
                    anchor = parts[: len(parts) - node.level + 1]
                    base = ".".join([*anchor, base]) if base else ".".join(anchor)
                yield from (f"{base}.{alias.name}" for alias in node.names)


def folder_of(package: str) -> Path:
    """Return the folder of an installed package, relative to the root, by the mapping in pyproject.toml."""
    mapping = setuptools_table()["package-dir"]
    assert isinstance(mapping, dict)
    parent = package
    while parent not in mapping:
        parent = parent.rpartition(".")[0]
    rest = package.removeprefix(parent).strip(".")
    return Path(mapping[parent], *rest.split(".")) if rest else Path(mapping[parent])


@functools.cache
def library() -> list[Module]:
    """Return every Python file of the library, parsed."""
    modules = []
    for package in packages():
        for path in sorted((ROOT / folder_of(package)).glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
            modules.append(Module(name, path.relative_to(ROOT), tree))
    return modules


def importable() -> list[str]:
    """Return the names of the library's modules that can be imported here."""
    names = [module.name for module in library() if not module.name.endswith("__main__")]
    return [name for name in names if name not in GUESTS]
