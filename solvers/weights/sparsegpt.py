"""SparseGPT: column by column, what a pruned weight leaves is made up for by the columns to its right."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import NM, Gram, KSparse, MaskProblem, Problem, RelaxPruneError

from ..base import Answer, Run, Solver, Status, block_bytes, needs_weights

_logger = logging.getLogger("relaxprune")
_MATRICES = 5  # (rows, cols) float64 tensors held at once
_TRIES = 6  # damping is raised tenfold until the Gram can be factorised


@dataclass(frozen=True)
class SparseGPT(Solver):
    """SparseGPT (Frantar and Alistarh, ICML 2023, algorithm 1), at exact counts.

    With U the upper Cholesky factor of (G + damping · mean(diag G) · I)⁻¹, column j's weights outside the mask are set
    to zero and w_j / U_jj · U_j,j: is taken off the columns from j on. Masks are chosen block by block of columns, from
    weights as they are then, by the least w² / U_jj²; in N:M groups when the group begins.

    The published code takes the smallest scores of a whole block of rows and columns. Here every count of the problem's
    set is met: of a row's count each block takes its share, and with ``KSparse(per="layer")`` rows of a block share.

    Args:
        damping: share of the mean of the Gram's diagonal added to it.
        blocksize: columns of a block.
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

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 <= self.damping <= 1:
            raise RelaxPruneError(f"damping must lie in [0, 1], got {self.damping!r}")
        if self.blocksize < 1:
            raise RelaxPruneError(f"blocksize must be at least 1, got {self.blocksize!r}")

    def check(self, problem: Problem) -> None:
        """Refuse a problem without weight and Gram, and a set whose counts do not go along a row."""
        needs_weights(self.name, problem)
        if not isinstance(problem.polytope, (KSparse, NM)):
            kind = type(problem.polytope).__name__
            raise RelaxPruneError(
                f"solver 'sparsegpt' needs a KSparse or NM set without fixed entries, got a {kind}; "
                "reconstruct and alps take any set"
            )

    def least_bytes(self, problem: Problem) -> int:
        """Return what one coupled block takes."""
        return block_bytes(problem, _MATRICES)

    def planned_iterations(self, max_iterations: int | None) -> int:
        """There are none to count: every column is visited once."""
        return 0

    def run(self, problem: Problem, run: Run) -> Answer:
        """Go through the columns of all rows of a block of rows; the weights come along."""
        layer = needs_weights(self.name, problem)
        factor = upper_factor(layer.prepared, self.damping)
        if factor is None:
            return Answer(run.start, status=Status.BACKEND_FAILED)
        answer = Answer(run.start.clone(), weight=torch.zeros(layer.shape, dtype=torch.float64, device=layer.device))
        assert answer.weight is not None
        for part, piece in layer.split(_MATRICES, run.memory_bytes):
            assert isinstance(piece, MaskProblem)
            answer.point[part], answer.weight[part] = self._sweep(piece, factor)
        if not bool(torch.isfinite(answer.weight).all()):
            return Answer(run.start, status=Status.NOT_FINITE)
        answer.counts.iterations = 1
        rows, cols = layer.shape
        # Updates go to the right of each column: half a product. The factors: two factorisations and an inverse.
        answer.counts.products = 0.5 + cols / rows
        return answer

    def _sweep(self, piece: MaskProblem, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask and weights of some rows."""
        weight = piece.weight.to(torch.float64, copy=True)
        rows, cols = weight.shape
        mask = torch.ones(rows, cols, dtype=torch.bool, device=weight.device)
        polytope, size = piece.polytope, self.blocksize
        if isinstance(polytope, NM):  # a group lies inside a block
            size = max(polytope.group, size - size % polytope.group)
        diagonal = factor.diagonal()
        for start in range(0, cols, size):
            stop = min(start + size, cols)
            block = slice(start, stop)
            if isinstance(polytope, KSparse):
                chosen = _share(polytope, mask, start, stop)
                mask[:, block] = chosen.round((weight[:, block] / diagonal[block]).square())
            errors = torch.zeros(rows, stop - start, dtype=torch.float64, device=weight.device)
            for j in range(start, stop):
                if isinstance(polytope, NM) and j % polytope.group == 0:
                    group = slice(j, j + polytope.group)
                    mask[:, group] = polytope.round((weight[:, group] / diagonal[group]).square())
                error = torch.where(mask[:, j], 0.0, weight[:, j] / diagonal[j])
                weight[:, j:stop].addr_(error, factor[j, j:stop], alpha=-1)
                errors[:, j - start] = error
            weight[:, stop:].addmm_(errors, factor[block, stop:], alpha=-1)
        return mask, torch.where(mask, weight, 0.0)


def _share(polytope: KSparse, mask: Tensor, start: int, stop: int) -> KSparse:
    """Return the set of masks of the columns from ``start`` to ``stop``: in step with the share of columns done."""
    rows, cols = mask.shape
    height = 1 if polytope.per == "row" else rows
    done, now = (polytope.keep * end // cols for end in (start, stop))
    width = height * (stop - start)
    return KSparse(min(now - done, width), polytope.per, polytope.at_most)


def upper_factor(gram: Gram, damping: float) -> Tensor | None:
    """Return U, (cols, cols) float64 upper triangular, with Uᵀ U = (G + damping · mean(diag G) · I)⁻¹.

    Inputs that never fire get 1 on the diagonal, as in the published code. A Gram that cannot be factorised gets ten
    times the damping, and at least 1e-6 of it.

    Returns:
        U, or None where no damping that is tried lets it be factorised.
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
