"""What a test may be marked with is told to those who write tests."""

from __future__ import annotations

from .repository import ROOT, project


def test_every_marker_is_told_to_contributors() -> None:
    tool = project()["tool"]
    assert isinstance(tool, dict)
    names = [line.partition(":")[0] for line in tool["pytest"]["ini_options"]["markers"]]
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert names and [name for name in names if f"`{name}`" not in page] == []
