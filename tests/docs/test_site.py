"""The documentation site: built without a warning, with every page in its navigation, asking nobody for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .blocks import ROOT

CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))


def listed(entries) -> list[str]:
    """Return the pages of a navigation, however deep."""
    found = []
    for entry in entries:
        for target in entry.values():
            found += [target] if isinstance(target, str) else listed(target)
    return found


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(listed(CONFIG["project"]["nav"])) == pages


def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "zensical"
    if not program.exists():
        pytest.skip("the site needs zensical: pip install 'relaxprune[docs]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run(
        [program, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("solve", "ReconstructionProblem", "WeightCertificate", "PruneOptions"):
        assert name in api
    for page in (tmp_path / "site").rglob("index.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img)[^>]+src="https?:|<link[^>]+rel="stylesheet"[^>]+href="https?:', text), (
            page
        )
