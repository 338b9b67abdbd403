"""For scripts written like Wanda's (arXiv 2306.11695): statistics gathered by a forward hook, then a mask per layer.

``LayerStatistics`` replaces ``WrappedGPT`` of such a script, and ``pruned_mask`` its ranking of the weights. In these
scripts a mask is True where a weight is PRUNED, and ``prune_n:prune_m`` PRUNES n of every m columns; everywhere else in
relaxprune True and N mean KEPT. This module follows the scripts.

>>> import torch
>>> layer = torch.nn.Linear(8, 4)
>>> statistics = LayerStatistics(layer)
>>> statistics.add_batch(torch.randn(1, 64, 8), None)
>>> layer.weight.data[pruned_mask(layer, statistics, sparsity_ratio=0.5)] = 0
>>> int(layer.weight.count_nonzero())
16
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.solvers import Solver

from .one_weight import Figures, InputGram, choice, figures_of, weight_of


class LayerStatistics:
    """The Gram of a layer's inputs, gathered batch by batch; takes ``WrappedGPT``'s arguments.

    Attributes:
        figures: error and proven bound of the layer's mask, once ``pruned_mask`` has found it.
    """

    def __init__(self, layer: nn.Module, layer_id: int = 0, layer_name: str = "none") -> None:
        """Start from no tokens.

        Args:
            layer: a Linear, Conv1D or Conv2d.
            layer_id: the block's number, for messages.
            layer_name: the layer's name in its block, for messages.
        """
        self.inputs = InputGram(layer, f"{layer_id}.{layer_name}")
        self.figures: Figures | None = None

    def add_batch(self, inp: Tensor, out: Any = None) -> None:
        """Count the tokens of one call.

        Args:
            inp: what the layer was called with: (tokens, cols), (batch, tokens, cols), or images for Conv2d.
            out: ignored.

        Raises:
            RelaxPruneError: a width that differs from earlier batches, or values that are not finite.
        """
        self.inputs.add(inp)


def pruned_mask(
    layer: nn.Module | Tensor,
    statistics: LayerStatistics | Tensor,
    sparsity_ratio: float | None = None,
    prune_n: int = 0,
    prune_m: int = 0,
    *,
    solver: str | Solver = "fw",
    **options: Any,
) -> Tensor:
    """Return which weights of a layer to set to zero.

    Args:
        layer: the layer, or its weight (rows, cols).
        statistics: of its inputs, or their Gram (cols, cols).
        sparsity_ratio: fraction pruned of every row, floor(cols · ratio) entries as in Wanda; ignored if ``prune_n`` is
            set, as in the scripts.
        prune_n: PRUNE n of every ``prune_m`` consecutive columns; 0 for an unstructured mask.
        prune_m: columns in a group.
        solver: a name or an instance, as for ``solve``.
        **options: further arguments of ``solve``.

    Returns:
        bool, in the stored shape of the weight: True = PRUNED.

    Raises:
        RelaxPruneError: bad input, or statistics without tokens.
    """
    for name, value in (("prune_n", prune_n), ("prune_m", prune_m)):
        whole_number(name, value, 0)
    if prune_n > prune_m or (prune_m and not prune_n):
        raise RelaxPruneError(f"prune_n must be at least 1 and at most prune_m, or both 0, got {prune_n}:{prune_m}")
    pattern = f"{prune_m - prune_n}:{prune_m}" if prune_n else None
    chosen = choice(None if pattern else sparsity_ratio, pattern, solver, options)
    if not isinstance(statistics, (LayerStatistics, Tensor)):
        raise RelaxPruneError(
            f"statistics must be LayerStatistics or a Gram (cols, cols), got {type(statistics).__name__}"
        )
    if isinstance(layer, Tensor):
        layer = nn.ParameterDict({"weight": nn.Parameter(layer, requires_grad=False)})
    weight = weight_of(layer)
    gram = statistics if isinstance(statistics, Tensor) else statistics.inputs.gram()
    solution = chosen.solution(weight, gram.to(weight.weight.device))
    if not isinstance(statistics, Tensor):
        statistics.figures = figures_of(solution, statistics.inputs.tokens)
    return ~weight.as_stored(solution.mask)
