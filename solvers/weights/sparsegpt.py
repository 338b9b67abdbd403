"""SparseGPT: column by column, the columns to the right make up for a pruned weight."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Gram, MaskProblem, Problem, RelaxPruneError
from relaxprune.problems.checks import fraction, whole_number

from ..base import Answer, Counts, Published, Run, Solver, Status, block_bytes, needs_weights
from ..driver import Band, Driver

_logger = logging.getLogger("relaxprune")
_MATRICES = 5  # (rows, cols) float64 tensors held at once
_TRIES = 6  # damping is raised tenfold until the Gram can be factorised


@dataclass(frozen=True)
class SparseGPT(Solver):
    """SparseGPT (Frantar and Alistarh, ICML 2023, algorithm 1), at exact counts.

    With U the upper Cholesky factor of (G + damping · mean(diag G) · I)⁻¹, column j's weights outside the mask are set
    to zero and w_j / U_jj · U_j,j: is subtracted from the columns from j on. Masks are chosen some columns at a time,
    from the weights at that point, by the least w² / U_jj²; in N:M groups when the group begins.

    The published code takes the smallest scores of many rows and columns together. Here every count of the problem's
    set is met: every block of columns gets its share of a row's count, or of all rows' with ``KSparse(per="layer")``.
    ``prune_model`` counts over the layer and moves weights, unless something else is asked for; a ``MaskProblem`` asks
    for the mask alone.

    Args:
        damping: share of the mean of the Gram's diagonal added to it, with what the problem has added in it.
        blocksize: number of columns whose masks are chosen together.
    """

    damping: float = 0.01
    blocksize: int = 128

    name: ClassVar[str] = "sparsegpt"
    summary: ClassVar[str] = "column by column with inverse Cholesky updates, as published; for weights that move"
    default_polish: ClassVar[str | None] = None
    honours: ClassVar[frozenset[str]] = frozenset()
    only_images: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    own_weights: ClassVar[bool] = True
    published: ClassVar[Published] = Published(weights="refit", allocation="layer", damping=0.01, plain=True)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        fraction("damping", self.damping)
        whole_number("blocksize", self.blocksize, 1)

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram, and a set that cannot be cut into columns."""
        needs_weights(self.name, problem)
        polytope, width = problem.polytope, min(self._width(problem), problem.shape[1])
        free = all(entries is None for entries in polytope.fixed()) and not polytope.counts_columns()
        if not free or polytope.on_columns(0, width, problem.shape) is None:
            raise RelaxPruneError(
                "solver 'sparsegpt' needs a set that can be cut between columns, without fixed entries or counts along "
                f"columns, which this {polytope.label} set is not; reconstruct and alps take any set"
            )

    def least_bytes(self, problem: Problem) -> int:
        """Return the bytes of one coupled block."""
        return block_bytes(problem, _MATRICES)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """Return 0: every column is visited once."""
        return 0

    def bands(self, problem: Problem, run: Run) -> int:
        """Return the number of bands that fit the memory budget."""
        return len(list(problem.split(_MATRICES, run.memory_bytes)))

    def run(self, problem: Problem, run: Run) -> Answer:
        """Go through the columns of all rows of a band, and return the weights too."""
        layer = needs_weights(self.name, problem)
        factor = upper_factor(layer.prepared, layer.prepared.lacking(self.damping))
        if factor is None:
            return Answer(run.start, status=Status.BACKEND_FAILED)
        driver = Driver(self.name, run, layer.split(_MATRICES, run.memory_bytes))
        answer = driver.sweep(lambda band: self._swept(band, factor))
        rows, cols = layer.shape
        answer.counts.products += cols / rows  # the factors: two factorisations and an inverse
        return answer

    def _swept(self, band: Band[MaskProblem], factor: Tensor) -> Answer:
        """Return mask and weights of some rows, or the start and the weights as they are."""
        mask, weight = self._sweep(band.problem, factor)
        counts = Counts(iterations=1, products=0.5)  # updates go to the right of each column
        if bool(torch.isfinite(weight).all()):
            return Answer(mask, counts=counts, weight=torch.where(mask, weight, 0.0))
        unmoved = band.problem.weight.to(torch.float64)
        return Answer(band.run.start, status=Status.NOT_FINITE, counts=counts, weight=unmoved)

    def _width(self, problem: Problem) -> int:
        """Return how many columns are chosen together: a block of columns, or a group that cannot be cut."""
        polytope, shape = problem.polytope, problem.shape
        anywhere = polytope.on_columns(0, 1, shape) is not None
        return self.blocksize if anywhere else polytope.group_size(shape)

    def _sweep(self, piece: MaskProblem, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask and weights of some rows; pruned weights hold rounding errors, or NaN if the sweep broke down."""
        weight = piece.weight.to(torch.float64, copy=True)
        rows, cols = weight.shape
        mask = torch.ones(rows, cols, dtype=torch.bool, device=weight.device)
        width, size = self._width(piece), self.blocksize
        size = max(width, size - size % width)  # what is chosen together lies inside a block
        diagonal = factor.diagonal()
        for start in range(0, cols, size):
            stop = min(start + size, cols)
            block = slice(start, stop)
            errors = torch.zeros(rows, stop - start, dtype=torch.float64, device=weight.device)
            for j in range(start, stop):
                if j % width == 0:
                    some = slice(j, min(j + width, cols))
                    chosen = piece.polytope.on_columns(some.start, some.stop, piece.shape)
                    assert chosen is not None
                    mask[:, some] = chosen.round((weight[:, some] / diagonal[some]).square())
                error = torch.where(mask[:, j], 0.0, weight[:, j] / diagonal[j])
                weight[:, j:stop].addr_(error, factor[j, j:stop], alpha=-1)
                errors[:, j - start] = error
            weight[:, stop:].addmm_(errors, factor[block, stop:], alpha=-1)
        return mask, weight


def upper_factor(gram: Gram, damping: float) -> Tensor | None:
    """Return U, (cols, cols) float64 upper triangular, with Uᵀ U = (G + damping · mean(diag G) · I)⁻¹.

    Inputs that never fire get 1 on the diagonal, as in the published code. If the Gram cannot be factorised, damping is
    multiplied by ten, and at least 1e-6.

    Returns:
        U, or None if no damping that is tried lets it be factorised.
    """
    matrix = gram.matrix.to(torch.float64, copy=True)
    diagonal = gram.diagonal.to(torch.float64)
    matrix.diagonal().copy_(torch.where(diagonal > 0, diagonal, 1.0))
    added = 0.0
    for attempt in range(_TRIES):
        wanted = gram.scale * (damping if attempt == 0 else max(damping, 1e-7) * 10**attempt)
        matrix.diagonal().add_(wanted - added)
        added = wanted
        lower, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            inverse = torch.cholesky_inverse(lower)
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                if attempt:
                    _logger.warning("sparsegpt: a damping of %g was needed to factorise the Gram", wanted / gram.scale)
                return factor
    return None
