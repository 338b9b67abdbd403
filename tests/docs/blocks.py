"""Finds the code blocks of a Markdown page and the remarks that stand before them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)$")
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*?) -->")

# Blocks that run, and blocks that only show something.
RUNS = frozenset({"python", "console"})
SHOWS = frozenset({"text", "json", "toml", "yaml", "math", "bibtex"})


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line it starts at, its language, its text, and why it is not run, if so."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        """The page and line, for messages and test names."""
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    """Return README.md, CONTRIBUTING.md and every page under docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of ``page`` in order; raise ValueError for one that is not closed."""
    return parse(page, page.read_text(encoding="utf-8"))


def parse(page: Path, text: str) -> list[Block]:
    """Return the fenced blocks of ``text``; raise ValueError for one that is not closed."""
    found: list[Block] = []
    lines = text.splitlines()
    start: int | None = None
    language = indent = remark = ""
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if start is None and fence:
            start, language, indent = number, fence["language"].strip(), fence["indent"]
            before = [earlier for earlier in lines[:number] if earlier.strip()]
            remark = before[-1].strip() if before else ""
        elif start is not None and fence and not fence["language"]:
            body = "\n".join(inner.removeprefix(indent) for inner in lines[start + 1 : number])
            reason = NOT_RUN.fullmatch(remark)
            found.append(Block(page, start + 1, language, body + "\n", reason["reason"] if reason else None))
            start = None
    if start is not None:
        raise ValueError(f"{page}:{start + 1}: the code block is not closed")
    return found


def commands(block: Block) -> list[str]:
    """Return the commands of a console block, the lines that start with ``$``, with continued lines joined."""
    joined = re.sub(r"\\\n\s*>?\s*", "", block.text)
    return [line.removeprefix("$").strip() for line in joined.splitlines() if line.startswith("$")]
