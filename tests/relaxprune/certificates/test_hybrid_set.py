"""The verifier's own hybrid sets against every mask: what is feasible, and the least sum, in floats and rationals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from relaxprune.certificates.verify.arrays import fractions
from relaxprune.certificates.verify.mask_set import MaskSet
from relaxprune.problems import Face
from tests.problems.polytopes.test_hybrid import drawn
from tests.random_problems import Draw, fixed_entries


@given(seed=st.integers(0, 2**31))
def test_least_sums_and_feasible_masks_are_those_of_the_list(seed):
    draw = Draw(seed)
    base, rule = drawn(draw)
    kept, pruned = fixed_entries(rule, draw)
    one, rule = Face(base, kept, pruned), rule.fixing(kept, pruned)
    masks = MaskSet.of(one, rule.shape)
    costs = draw.normal(*rule.shape).numpy()
    sums = (rule.blocks[0] * costs).sum(axis=(1, 2))
    [least] = masks.least(costs)
    assert abs(least - sums.min()) <= masks.least_error() * abs(costs).sum()
    exact = fractions(costs)
    best = min(sum((exact[i, j] for i, j in np.argwhere(mask)), Fraction(0)) for mask in rule.blocks[0])
    assert masks.least(exact)[0] == best
    for _ in range(8):
        bits = draw.bits(0.7, *rule.shape).numpy()
        assert masks.feasible(bits) == rule.feasible(bits)
    assert all(masks.feasible(mask) for mask in rule.blocks[0])
