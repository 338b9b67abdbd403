"""Recipes: choices of solver and stages that go together, by name."""

from __future__ import annotations

from typing import Any

from relaxprune.problems.checks import one_of

from .prune_options import PruneOptions

RECIPES: dict[str, dict[str, Any]] = {
    "masks": {"solver": "fw"},
    "best": {"solver": "reconstruct", "effort": "fast", "refine": 4},
}
"""Name -> fields of ``PruneOptions``, a solver and its options; everything else is left at its default."""


def recipe(name: str, **changes: Any) -> dict[str, Any]:
    """Return what a recipe stands for, as arguments of ``plan_model`` and ``prune_model``.

    ``prune_model(model, batches, sparsity=0.5, **recipe("best", seed=1))`` is ``relaxprune prune --recipe best --seed
    1``, on batches that the caller has chosen: the command line puts samples of the model among them, and gives others
    to the refinement alone (``refine_batches``). ``calibration_windows("self", …, model=model)`` makes both.

    Args:
        name: "masks" keeps weights as they are; "best" moves them, and refines the whole model at the end.
        **changes: fields of ``PruneOptions``, a ``solver`` and its options, which win over those of the recipe; another
            solver takes none of the recipe's.

    Raises:
        RelaxPruneError: an unknown name, or a value out of range.
    """
    one_of("recipe", name, tuple(RECIPES))
    taken = dict(RECIPES[name])
    if changes.get("solver", taken["solver"]) != taken["solver"]:
        taken.pop("effort", None)
    options, words = PruneOptions().updated({**taken, **changes})
    return {**words, "options": options}
