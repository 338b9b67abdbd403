"""The keys of a run record, as it has them and as its page names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def documented_keys() -> set[str]:
    """The keys in the tables of docs/run-folder.md under ``relaxprune.json``, with the key that their heading names."""
    page = (Path(__file__).parents[2] / "docs/run-folder.md").read_text(encoding="utf-8")
    keys, prefix = set(), ""
    for line in page.partition("## `relaxprune.json`")[2].partition("\n## ")[0].splitlines():
        if line.startswith("### "):
            prefix = line.split("`")[1] + "."
        elif line.startswith("| `"):
            keys |= {prefix + key for key in line.split("|")[1].split("`")[1::2]}
    return keys


def keys_of(value: Any, name: str = "") -> set[str]:
    """The dotted names of everything that is no dict; a list of dicts counts as one of them."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys_of(item, name) for item in value))
    if not isinstance(value, dict):
        return {name}
    return set().union(*(keys_of(item, f"{name}.{key}" if name else key) for key, item in value.items()))
