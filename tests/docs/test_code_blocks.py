"""Every code block of the README and the docs runs, page by page, in an empty folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from relaxprune.cli import main

from .blocks import ROOT, RUNS, SHOWS, Block, blocks, commands, pages, parse

# Set-up commands change the machine and are what ``make test`` has just done: they are skipped by this visible rule.
SET_UP = ("make", "pip", "python -m pip", "python3 -m venv", "git", "cd", "source")
PAGES = pages()
SLOW = ("docs/quick-start.md",)  # loads a real model several times
NOT_RUN = [block for page in PAGES for block in blocks(page) if block.not_run]


def _name(page: Path) -> str:
    """Return a page's path inside the repository."""
    return str(page.relative_to(ROOT))


def _run_python(block: Block, namespace: dict[str, object]) -> None:
    """Run a Python block in its page's namespace; tracebacks show the page's own line numbers."""
    source = "\n" * block.line + block.text
    exec(compile(source, str(block.page), "exec", dont_inherit=True), namespace)


def _run_console(block: Block) -> None:
    """Run the ``relaxprune`` commands of a console block; any other command needs a remark."""
    lines = commands(block)
    assert lines, f"{block.where}: a console block has lines that start with '$ '; for other text use ```text"
    for line in lines:
        if line.startswith(tuple(f"{word} " for word in SET_UP)):
            continue
        words = shlex.split(line, comments=True)
        assert words[0] == "relaxprune", f"{block.where}: say why it is not run: <!-- not run: reason -->"
        # In this process: a page has several commands, and each would import torch anew.
        assert main(words[1:]) == 0, f"{block.where}: {line}"


RUN_PAGES = [pytest.param(page, marks=pytest.mark.slow) if _name(page) in SLOW else page for page in PAGES]


@pytest.mark.parametrize("page", RUN_PAGES, ids=_name)
def test_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python":
            _run_python(block, namespace)
        elif block.language == "console":
            _run_console(block)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.not_run
    if block.language == "python":
        compile(block.text, str(block.page), "exec")
    pytest.skip(f"{block.where}: {block.not_run}")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_names_a_known_language(page: Path) -> None:
    unknown = [f"{block.where}: {block.language!r}" for block in blocks(page) if block.language not in RUNS | SHOWS]
    assert unknown == [], f"use one of {sorted(RUNS | SHOWS)}"


SAMPLE = """text
```python
x = 1
```

<!-- not run: an hour -->

```console
$ relaxprune prune a \\
    --out b
done
$ make demo
```
"""


def test_blocks_are_found_with_their_remarks() -> None:
    first, second = parse(ROOT / "sample.md", SAMPLE)
    assert (first.line, first.language, first.text, first.not_run) == (2, "python", "x = 1\n", None)
    assert second.not_run == "an hour"
    assert commands(second) == ["relaxprune prune a --out b", "make demo"]


def test_a_failing_block_fails() -> None:
    python, unknown = parse(ROOT / "bad.md", "```python\nassert False\n```\n```console\n$ rm x\n```\n")
    with pytest.raises(AssertionError):
        _run_python(python, {})
    with pytest.raises(AssertionError, match="not run"):
        _run_console(unknown)
    (wrong,) = parse(ROOT / "bad.md", "```console\n$ relaxprune no-such-command\n```\n")
    with pytest.raises(AssertionError, match="no-such-command"):
        _run_console(wrong)


def test_a_block_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(ValueError, match="not closed"):
        parse(ROOT / "bad.md", "```python\n")
