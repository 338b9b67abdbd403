"""One coupled block as an explicit quadratic program, for backends that want matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BlockProgram:
    """Minimise zᵀ Q z + linear·z + constant over the free entries z = 1 − m (1 = pruned) of one coupled block.

    Every cell prunes ``pruned`` entries (at least that many, for "at most" sets). Scaled as the working problem is: of
    order one, float64.

    Attributes:
        free: (size,) bool, the entries of the flattened block that are not fixed.
        quadratic: (n, n), symmetric.
        linear: (n,).
        constant: the objective at z = 0.
        member: (cells, n), 1 where an entry belongs to a cell.
        pruned: (cells,) how many free entries of a cell are pruned.
        at_most: whether more may be pruned.
    """

    free: Tensor
    quadratic: Array
    linear: Array
    constant: float
    member: Array
    pruned: Array
    at_most: bool

    @cached_property
    def noise(self) -> float:
        """The scale below which differences of objectives are rounding."""
        spread = np.sqrt(np.clip(np.diagonal(self.quadratic), 0, None)).sum()
        return float(1e-14 * (spread**2 + np.abs(self.linear).sum() + abs(self.constant)))

    @property
    def finite(self) -> bool:
        """Whether all numbers are finite: backends may loop for ever on others."""
        return bool(np.isfinite(self.quadratic).all() and np.isfinite(self.linear).all() and np.isfinite(self.constant))

    def value(self, z: Array) -> float:
        """Return the objective at ``z`` (n,)."""
        return float(z @ self.quadratic @ z + self.linear @ z) + self.constant

    def gradient(self, z: Array) -> Array:
        """Return the gradient at ``z`` (n,)."""
        return 2 * self.quadratic @ z + self.linear

    def excess(self, z: Array) -> float:
        """Return by how much ``z`` (n,) violates the box or a count: 0 for a feasible point."""
        counts = self.member @ z - self.pruned
        worst = (-counts if self.at_most else np.abs(counts)).max(initial=0.0)
        return float(max(worst, (-z).max(initial=0.0), (z - 1).max(initial=0.0)))

    def from_mask(self, mask: Tensor) -> Array:
        """Return z of a block's mask or relaxed mask (height, cols)."""
        values = mask.reshape(-1).cpu()[self.free].to(torch.float64)
        return np.asarray((1 - values).numpy(), dtype=np.float64)

    def put(self, mask: Tensor, z: Array) -> Tensor:
        """Return ``mask`` (height, cols) with its free entries set to 1 − z, in its own dtype."""
        flat = mask.reshape(-1).clone()
        flat[self.free.to(mask.device)] = torch.from_numpy(1 - z).to(mask.device).to(mask.dtype)
        return flat.view(mask.shape)


def block_program(piece: Problem) -> BlockProgram:
    """Write down the problem of one coupled block."""
    working, (rows, cols), polytope = piece.working(torch.float64), piece.shape, piece.polytope
    lines = torch.arange(rows, device=piece.device)
    columns = torch.arange(cols, device=piece.device).expand(rows, cols)
    quadratic = torch.block_diag(*working.coupling(lines, columns, columns)).cpu()
    ones = torch.ones(rows, cols, dtype=torch.float64, device=piece.device)
    half = working.half_gradient(ones)
    constant = float(working.row_value(ones, half).sum())
    fixed_kept, fixed_pruned = (_flat(entries, rows * cols) for entries in polytope.fixed())
    free = ~(fixed_kept | fixed_pruned)
    slope = -2 * half.reshape(-1).cpu()
    # Entries fixed to pruned have z = 1: their rows of Q go to the linear term, their values to the constant.
    constant += float(slope[fixed_pruned].sum() + quadratic[fixed_pruned][:, fixed_pruned].sum())
    linear = slope[free] + 2 * quadratic[free][:, fixed_pruned].sum(dim=1)
    cells, keep = polytope.cells(piece.shape)
    member = torch.zeros(len(cells), rows * cols, dtype=torch.float64).scatter_(1, cells.cpu(), 1.0)
    pruned = member[:, free].sum(dim=1) - (keep - member[:, fixed_kept].sum(dim=1))
    return BlockProgram(
        free,
        quadratic[free][:, free].numpy(),
        linear.numpy(),
        constant,
        member[:, free].numpy(),
        # A cell whose "at most" count cannot bind needs no pruning at all.
        pruned.clamp_min(0).numpy() if polytope.is_at_most() else pruned.numpy(),
        polytope.is_at_most(),
    )


def _flat(entries: Tensor | None, size: int) -> Tensor:
    """Return fixed entries as a flat CPU mask."""
    return torch.zeros(size, dtype=torch.bool) if entries is None else entries.reshape(-1).cpu()


def refuse_more_free_than(limit: int, solver: str, problem: Problem) -> None:
    """Raise RelaxPruneError if a coupled block has more than ``limit`` entries that are not fixed.

    Raises:
        RelaxPruneError: names the limit, the size, and the solvers without a limit.
    """
    height = problem.polytope.rows_per_block(problem.shape)
    fixed = torch.zeros(problem.shape, dtype=torch.bool, device=problem.device)
    for entries in problem.polytope.fixed():
        fixed = fixed if entries is None else fixed | entries
    most = int((~fixed).view(-1, height * problem.shape[1]).sum(dim=1).max())
    if most > limit:
        raise RelaxPruneError(
            f"solver {solver!r} takes at most {limit} free entries per coupled block, and this problem has {most}; "
            "'fw', 'swap' and 'ils' have no such limit"
        )


def require(module: str, solver: str) -> Any:
    """Import an optional backend.

    Raises:
        RelaxPruneError: not installed; the sentence names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise RelaxPruneError(
            f"solver {solver!r} needs {module}, which is not installed: pip install 'relaxprune[exact]'"
        ) from error
