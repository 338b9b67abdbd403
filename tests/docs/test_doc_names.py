"""Pages name only what exists: modules, classes, functions, options of the command line, files."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import typer

import relaxprune
from relaxprune.cli.app import app
from tests.packaging.repository import library

from .blocks import ROOT, pages

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
API_ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
FOLDER = re.compile(r"(?<![\w.])(relaxprune|problems|solvers|tests|docs)/[\w/.-]*\w")
CALL = re.compile(r"(?P<name>[A-Za-z_]\w*(?:\.\w+)*)\(.*\)")
WORD = re.compile(r"[A-Za-z_][\w.]*\w")
OPTION = re.compile(r"--[a-z][a-z-]+")

# Names of other libraries, of models, of tests and of placeholders that pages speak of.
FOREIGN = {
    *("AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "FLOORS", "FOLDER", "ModuleList", "OUT"),
    *("Qwen3MoeTopKRouter", "SwitchTransformersTop1Router", "acc_norm", "c_attn", "classifier", "down_proj", "dt_proj"),
    *("benchmark_utils", "doublings", "flock", "gate", "gate_up_proj", "long_run", "mask_structure", "nohup", "slow"),
    *("out_proj", "packages", "router", "shared_expert_gate", "sparse_magnitude", "torchrun", "up_proj"),
    *("weight_mask", "weight_orig", "wg"),
    *("c_0", "c_4", "convert_model", "sparsity_config"),  # of MACKO, openvino and vLLM
}


@functools.cache
def known() -> frozenset[str]:
    """Return every identifier of the library's code, and every string without a space."""
    found: set[str] = set()
    for module in library():
        found.update(module.name.split("."))
        for node in ast.walk(module.tree):
            for field in ("id", "attr", "arg", "name"):
                if isinstance(value := getattr(node, field, None), str):
                    found.update(value.split("."))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                found.update([node.value, *node.value.split(".")])
    return frozenset(found)


@functools.cache
def options() -> frozenset[str]:
    """Return every option of every command, and of the benchmarks' scripts."""
    found = {"--help"}
    for script in (ROOT / "docs/benchmarks").glob("*.py"):
        found.update(OPTION.findall(script.read_text(encoding="utf-8")))
    waiting: list[Any] = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            found.update(parameter.opts + parameter.secondary_opts)
    return frozenset(found)


def resolves(dotted: str) -> bool:
    """Return whether a dotted name leads to a module, or to something inside of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return part in getattr(value, "__dataclass_fields__", ())
            value = getattr(value, part)
        return True
    return False


def lost(span: str) -> list[str]:
    """Return the parts of a code span that name something that is not there."""
    wrong = [
        name
        for name in re.findall(r"(?<![\w./-])relaxprune(?:\.\w+)+", span)
        if not (resolves(name) or name in known())
    ]
    wrong += [found[0] for found in FOLDER.finditer(span) if not (ROOT / found[0]).exists() and "…" not in span]
    if span.startswith(("relaxprune ", "--")):
        wrong += [name for name in OPTION.findall(span) if name not in options()]
    words = [called["name"]] if (called := CALL.fullmatch(span)) else []
    words += [span] if WORD.fullmatch(span) and not (ROOT / span).exists() else []
    for word in words:
        parts = word.split(".")
        if parts[0] not in ("torch", "transformers", "numpy", "scipy", "relaxprune"):
            wrong += [part for part in parts if not (part.isdigit() or part in known() | FOREIGN)]
    return wrong


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert {span: names for span in SPAN.findall(text) if (names := lost(span))} == {}


def test_what_the_api_page_lists_is_where_it_says() -> None:
    names = API_ENTRY.findall((ROOT / "docs/api.md").read_text(encoding="utf-8"))
    assert names
    assert [name for name in names if not resolves(name)] == []


def test_the_api_page_lists_every_public_name() -> None:
    listed = {name.rpartition(".")[2] for name in API_ENTRY.findall((ROOT / "docs/api.md").read_text(encoding="utf-8"))}
    assert set(relaxprune.__all__) - {"__version__"} - listed == set()


@pytest.mark.parametrize(
    "span", ["relaxprune.solving.nowhere", "solvers/nowhere.py", "--no-such-option", "NoSuchName()"]
)
def test_a_name_that_is_not_there_is_seen(span: str) -> None:
    assert lost(span)
