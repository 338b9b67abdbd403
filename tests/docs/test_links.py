"""Links and paths between the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .blocks import ROOT, pages

LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)")
NAMED = re.compile(r"`(?P<target>(?:docs/)[\w/.-]+\.md|[A-Z]+\.md)`")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_named_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lost = [found["target"] for found in LINK.finditer(text) if not (page.parent / found["target"]).exists()]
    lost += [found["target"] for found in NAMED.finditer(text) if not (ROOT / found["target"]).exists()]
    assert lost == []
