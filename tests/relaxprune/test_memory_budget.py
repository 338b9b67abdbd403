"""A small memory budget bounds what a solve allocates at once, beside outputs of the size of the weight."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from relaxprune import KSparse, MaskProblem, solve

ROWS, COLS, BUDGET = 8192, 64, 2**20  # a whole float64 matrix is four times the budget


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages made inside and still alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


@pytest.mark.parametrize("start", ["wanda", "ria", None])
def test_the_peak_is_outputs_and_the_budget(start):
    inputs = torch.randn(256, COLS)
    problem = MaskProblem(torch.randn(ROWS, COLS), inputs.T @ inputs / 256, KSparse(32))
    _ = problem.dense_energy
    whole = solve(problem, "fw", start=start, polish=None, max_iterations=2)
    with Peak() as peak:
        solution = solve(problem, "fw", start=start, polish=None, max_iterations=2, memory_budget_bytes=BUDGET)
    assert torch.equal(solution.mask, whole.mask)
    outputs = ROWS * COLS * (2 + 4 * 2)  # start and mask, and two relaxed masks in float32
    assert outputs < peak.most < outputs + 2 * BUDGET
