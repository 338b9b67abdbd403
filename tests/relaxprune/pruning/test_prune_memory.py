"""What a run holds at once: one Gram, the float64 sums still to come, and nothing of the layers behind it."""

from __future__ import annotations

import gc

from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import Gram
from relaxprune.pruning.mask_solver import MaskSolver
from relaxprune.pruning.pipeline import prune_model

from ..tiny_models import padded_batches, tiny_model


def alive():
    kinds = [type(thing) for thing in gc.get_objects()]
    return kinds.count(Gram), kinds.count(GramAccumulator)


def test_one_gram_and_the_sums_still_to_come_are_held_while_a_layer_is_solved(monkeypatch):
    held = []
    solve = MaskSolver.solve

    def count(self, layer, inputs, block):
        if block == 0:  # looking is slow
            grams, sums = alive()
            held.append((layer.name.split(".")[-1], grams - grams_before, sums - sums_before))
        return solve(self, layer, inputs, block)

    gc.collect()
    grams_before, sums_before = alive()  # what the tests before this one still hold
    monkeypatch.setattr(MaskSolver, "solve", count)
    options = PruneOptions(max_iterations=2, polish=None)
    prune_model(tiny_model("llama"), padded_batches(1), sparsity=0.5, options=options)
    assert held == [
        ("q_proj", 1, 3), ("k_proj", 1, 3), ("v_proj", 1, 3), ("o_proj", 1, 2),
        ("gate_proj", 1, 1), ("up_proj", 1, 1), ("down_proj", 1, 0),
    ]  # fmt: skip
