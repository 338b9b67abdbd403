"""The subspace that exact counts leave to a lifted matrix, and the maps to it and back.

The masks of a row are lifted to x = (1, x_1 … x_n) with x_j = ±1. A count, Σ_{j in group} x_j = size · centre, says
that x lies in a subspace. With x_j = centre + u_j the subspace is {Σ_group u_j = 0}, and one Householder reflection per
group maps it to "the last entry of each group is 0", which is left out. So V = (reflect, then shift) has the subspace
as its range, and VᵀMV and VAVᵀ cost a few passes over the matrix instead of two products.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Frame:
    """Maps between (…, n + 1, n + 1) lifted matrices and (…, r, r) ones on the subspace of the counts.

    Args:
        groups: (n,) int64, the group of each entry, or −1 for none.
        centre: (n,) float64, the mean of x over the entry's group; 0 where there is no group.
    """

    def __init__(self, groups: Tensor, centre: Tensor) -> None:
        """Build the reflections, one column per group."""
        n, count = len(groups), int(groups.amax()) + 1 if len(groups) else 0
        self.centre = centre
        self.reflections = torch.zeros(n, count, dtype=torch.float64, device=groups.device)
        stay = torch.ones(n + 1, dtype=torch.bool, device=groups.device)
        grouped = (groups >= 0).nonzero().squeeze(1)
        sizes = torch.bincount(groups[grouped], minlength=count)
        last = torch.zeros(count, dtype=torch.int64, device=groups.device)
        last.scatter_reduce_(0, groups[grouped], grouped, "amax", include_self=False)
        self.reflections[grouped, groups[grouped]] = sizes[groups[grouped]].to(torch.float64).rsqrt()
        self.reflections[last, torch.arange(count, device=groups.device)] += 1
        self.reflections /= self.reflections.norm(dim=0)
        stay[last + 1] = False
        self.kept = stay.nonzero().squeeze(1)
        # The complement of the range: what a matrix on the subspace lacks to be definite.
        normals = torch.zeros(n + 1, count, dtype=torch.float64, device=groups.device)
        normals[grouped + 1, groups[grouped]] = 1.0
        normals[0] = -(normals[1:] * centre.unsqueeze(1)).sum(dim=0)
        self.complement = normals @ torch.linalg.solve(normals.T @ normals, normals.T) if count else None

    @property
    def size(self) -> int:
        """r, the dimension of the subspace."""
        return len(self.kept)

    def down(self, matrix: Tensor) -> Tensor:
        """Return VᵀMV: (…, n + 1, n + 1) to (…, r, r)."""
        matrix = matrix.clone()
        body = matrix[..., 1:]
        matrix[..., 0] += body @ self.centre
        matrix[..., 0, :] += (self.centre.unsqueeze(-2) @ matrix[..., 1:, :]).squeeze(-2)
        self._reflect(matrix)
        reduced: Tensor = matrix[..., self.kept[:, None], self.kept]
        return reduced

    def up(self, matrix: Tensor) -> Tensor:
        """Return VAVᵀ: (…, r, r) to (…, n + 1, n + 1)."""
        n = len(self.centre)
        lifted: Tensor = matrix.new_zeros(*matrix.shape[:-2], n + 1, n + 1)
        lifted[..., self.kept[:, None], self.kept] = matrix
        self._reflect(lifted)
        lifted[..., 1:] += lifted[..., :1] * self.centre
        lifted[..., 1:, :] += lifted[..., :1, :] * self.centre.unsqueeze(-1)
        return lifted

    def definite(self, lifted: Tensor) -> Tensor:
        """Return a lifted matrix made definite outside of the subspace, where it is 0, by its own scale."""
        if self.complement is None:
            return lifted
        scale = lifted.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
        filled: Tensor = lifted + scale * self.complement
        return filled

    def _reflect(self, matrix: Tensor) -> None:
        """Apply the reflections to rows and columns of the body, in place."""
        if self.reflections.shape[1]:
            body = matrix[..., 1:]
            body -= (2 * (body @ self.reflections)) @ self.reflections.T
            body = matrix[..., 1:, :]
            body -= self.reflections @ (2 * (self.reflections.T @ body))
