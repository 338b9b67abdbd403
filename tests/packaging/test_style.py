"""Rules of writing that a syntax tree can show: one kind of code quote, one way to end a sentence, one logger."""

from __future__ import annotations

import ast
import re

import pytest

from .repository import Module, library

MODULES = library()
SINGLE = re.compile(r"(?<![`\w])`[^`\n]+`(?!`)")


def _docstrings(module: Module) -> list[str]:
    """Return every docstring of a module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(module.tree) if isinstance(node, kinds))
    return [text for text in found if text]


def _last_words(module: Module) -> list[tuple[int, str]]:
    """Return the literal end of the sentence of every error that is raised, with its line."""
    ends = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            sentence = node.exc.args[0]
            last = sentence.values[-1] if isinstance(sentence, ast.JoinedStr) and sentence.values else sentence
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                ends.append((node.lineno, last.value))
    return ends


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_docstrings_quote_code_by_double_backticks(module: Module) -> None:
    assert [found for text in _docstrings(module) for found in SINGLE.findall(text)] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_error_sentences_end_without_a_full_stop(module: Module) -> None:
    assert [(line, end) for line, end in _last_words(module) if end.rstrip().endswith(".")] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_there_is_one_logger(module: Module) -> None:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("logging.getLogger("):
            assert ast.unparse(node) == "_logger = logging.getLogger('relaxprune')", f"line {node.lineno}"
