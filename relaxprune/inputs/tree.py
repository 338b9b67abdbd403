"""Arguments as trees: take the tensors out of nested tuples, lists and mappings, and put others in."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """The place of leaf number ``index`` in a skeleton."""

    index: int


def map_tree(tree: Any, leaf_type: type, change: Callable[[Any], Any]) -> Any:
    """Rebuild a tree with every leaf of one type changed.

    Args:
        tree: nested tuples (named ones too), lists and mappings; anything else is a leaf.
        leaf_type: leaves of this type are changed, all others are kept as they are.
        change: from the old leaf to the new one; called in the order of the tree.

    Returns:
        A tree of the same shape; the old one is not changed.
    """
    if isinstance(tree, leaf_type):
        return change(tree)
    if isinstance(tree, tuple):
        items = [map_tree(item, leaf_type, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [map_tree(item, leaf_type, change) for item in tree]
    if isinstance(tree, MutableMapping):
        changed = copy.copy(tree)  # keeps the type: transformers' outputs are read by attribute too
        for key, item in tree.items():
            changed[key] = map_tree(item, leaf_type, change)
        return changed
    return tree


def flatten(tree: Any) -> tuple[list[Tensor], Any]:
    """Split a tree into its tensors and a skeleton with a ``Slot`` for each."""
    leaves: list[Tensor] = []

    def take(leaf: Tensor) -> Slot:
        leaves.append(leaf)
        return Slot(len(leaves) - 1)

    return leaves, map_tree(tree, Tensor, take)


def rebuild(skeleton: Any, leaves: Sequence[Tensor]) -> Any:
    """Put one tensor into each ``Slot`` of a skeleton."""
    return map_tree(skeleton, Slot, lambda slot: leaves[slot.index])
