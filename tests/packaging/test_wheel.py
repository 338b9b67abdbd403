"""The wheel holds what it should, and the package that it installs is complete and cheap to import."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path, PurePosixPath

import pytest

import relaxprune

from .conftest import CleanInstall
from .repository import GUESTS, ROOT, importable, library, packages, tracked_files

IMPORT_ALL = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    file = sys.modules[name].__file__
    assert file.startswith(sys.argv[2]), f"{name} comes from {file}"
leaked = {"problems", "solvers"} & set(sys.modules)
assert not leaked, f"generic top-level modules: {leaked}"
"""

HEAVY = ("torch", "transformers", "cvxpy", "typer", "rich", "scipy", "datasets", "networkx")

IMPORT_ROOT = """
import json, sys
import relaxprune
assert sys.argv[2] in dir(relaxprune)
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))
"""


def test_every_module_imports_from_a_clean_install(clean_install: CleanInstall) -> None:
    names = importable()
    done = clean_install.run("-W", "error", "-c", IMPORT_ALL, json.dumps(names), str(clean_install.folder))
    assert done.returncode == 0, done.stderr


def test_wheel_holds_the_library_and_nothing_else(clean_install: CleanInstall) -> None:
    with zipfile.ZipFile(clean_install.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (top_level,) = [wheel.read(name) for name in wheel.namelist() if name.endswith("top_level.txt")]
        licences = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert top_level.decode().split() == ["relaxprune"]
    assert licences, "the wheel has no LICENSE"
    expected = {str(PurePosixPath(*module.package.split("."), module.path.name)) for module in library()} | {
        "relaxprune/py.typed"
    }
    assert names == expected


def test_packages_list_equals_the_folders_in_git() -> None:
    folders = set()
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[0] in ("problems", "solvers", "relaxprune"):
            parts = path.parent.parts
            folders.add(".".join(parts if parts[0] == "relaxprune" else ("relaxprune", *parts)))
    assert sorted(folders) == sorted(packages())


@pytest.mark.parametrize("name", ["solve", "prune_model"])
def test_importing_the_root_is_cheap(clean_install: CleanInstall, name: str) -> None:
    done = clean_install.run("-c", IMPORT_ROOT, json.dumps(HEAVY), name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_solving_a_layer_needs_no_optional_package(clean_install: CleanInstall) -> None:
    code = "import sys, relaxprune; relaxprune.solve; relaxprune.MaskProblem; print('cvxpy' in sys.modules)"
    done = clean_install.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


def test_console_script_tells_the_version(clean_install: CleanInstall) -> None:
    for command in ([str(clean_install.folder / "bin" / "relaxprune")], ["-m", "relaxprune"]):
        done = clean_install.run(*command, "--version")
        assert done.returncode == 0, done.stderr
        assert relaxprune.__version__ in done.stdout


def test_a_clone_is_importable_as_it_is() -> None:
    """Two of the package's folders lie beside the others there."""
    code = "import relaxprune.problems, relaxprune.solvers; print(relaxprune.solvers.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "solvers" / "__init__.py"), done.stderr


def test_this_session_tests_the_library_as_it_is_in_the_repository() -> None:
    stale = []
    for module in library():
        if module.name.endswith("__main__") or module.name in GUESTS:
            continue
        installed = Path(str(import_module(module.name).__file__))
        if installed.read_bytes() != (ROOT / module.path).read_bytes():
            stale.append(module.name)
    assert not stale, (
        f"{', '.join(stale)}: installed and in the repository differ; run `make test`, which installs first"
    )


def test_no_generic_module_name_is_taken_in_this_session() -> None:
    assert not {"problems", "solvers"} & set(sys.modules)
