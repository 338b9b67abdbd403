"""Recipes: choices of solver and stages that go together, by name."""

from __future__ import annotations

from typing import Any

from relaxprune.problems.checks import one_of

from .prune_options import PruneOptions

RECIPES: dict[str, dict[str, Any]] = {
    "masks": {"solver": "fw"},
    "best": {"solver": "reconstruct", "effort": "fast", "refine": 3},
}
"""Name -> options of the solver and fields of ``PruneOptions``; everything else is left at its default."""


def recipe(name: str) -> dict[str, Any]:
    """Return what a recipe stands for, as arguments of ``plan_model`` and ``prune_model``.

    ``prune_model(model, batches, sparsity=0.5, **recipe("best"))`` is ``relaxprune prune --recipe best``, on batches
    that the caller has chosen: the command line puts samples of the model among them.

    Args:
        name: "masks" keeps weights as they are; "best" moves them, and refines the whole model at the end.

    Raises:
        RelaxPruneError: an unknown name.
    """
    one_of("recipe", name, tuple(RECIPES))
    options, words = PruneOptions().updated(RECIPES[name])
    return {**words, "options": options}
