"""Recipes: what they stand for, and what wins over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from relaxprune import PruneOptions, RelaxPruneError, prune_model, recipe
from relaxprune.options.recipes import RECIPES
from relaxprune.solvers import solver_class
from tests.relaxprune.tiny_models import padded_batches, tiny_model

from ..recipe_words import job_of


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_and_python_mean_the_same(name: str, tmp_path: Path) -> None:
    words = recipe(name)
    request = job_of("--recipe", name, "--sparsity", "0.5").request
    assert request.solver.name == words["solver"]
    assert request.options.refine == words["options"].refine
    weights = solver_class(words["solver"]).published.weights
    assert request.options.weights == weights and words["options"].weights is None


def test_what_is_given_beside_a_recipe_wins() -> None:
    request = job_of("--recipe", "best", "--sparsity", "0.5", "--solver", "alps", "--refine", "1").request
    assert request.solver.name == "alps" and request.options.refine == 1
    assert recipe("best", solver="alps", seed=3) == {"solver": "alps", "options": PruneOptions(refine=4, seed=3)}
    assert recipe("best", effort="default")["effort"] == "default" and "effort" not in recipe("best", solver="alps")
    named = job_of("--recipe", "best", "--sparsity", "0.5", "--solver", "reconstruct").request.solver
    longer = job_of("--recipe", "best", "--sparsity", "0.5", "--effort", "default").request.solver
    optioned = job_of("--recipe", "best", "--sparsity", "0.5", "--option", "effort=best").request.solver
    assert optioned.effort == "best"
    assert named.effort == recipe("best")["effort"] == "fast" and longer.effort == "default"


def test_an_unknown_name() -> None:
    with pytest.raises(RelaxPruneError, match="recipe must be one of masks, best, got 'bst'; did you mean 'best'"):
        recipe("bst")
    with pytest.raises(RelaxPruneError, match="--recipe must be one of masks, best"):
        job_of("--recipe", "bst", "--sparsity", "0.5")


def test_a_model_is_pruned_by_one() -> None:
    model = tiny_model("llama")
    report = prune_model(model, padded_batches(6), sparsity=0.5, **recipe("best", refine_rate=0.01, max_iterations=5))
    assert report.refinement is not None and report.options["weights"] == "refit"
