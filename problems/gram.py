"""A Gram matrix, prepared once for every layer and row that shares it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .errors import RelaxPruneError
from .neighbours import Neighbours
from .precision import UNIT_ROUNDOFF, row_blocks
from .unchanged import Unchanged

_REFUSED_BELOW = -1e-3
_ASYMMETRY = 1e-4
_BAND_BYTES = 64 * 2**20
_NARROW_RANGE = 1e-20, 1e20  # of a mean diagonal: weights and energies of such a Gram fit float32 as they are


@dataclass(frozen=True)
class PsdProof:
    """What is proven about the eigenvalues of a Gram matrix G.

    Attributes:
        shift: G + shift · Diag(G) is positive semidefinite; 0 when G itself is.
        psd: G itself is proven positive semidefinite.
        method: ``"cholesky"`` or ``"eigenvalues"``.
        smallest_eigenvalue: of Diag(G)^-½ G Diag(G)^-½ as computed, or None if a Cholesky factorisation sufficed.
        slack: allowance for rounding, in the same scaling.
    """

    shift: float
    psd: bool
    method: str
    smallest_eigenvalue: float | None
    slack: float


class Gram:
    """The second moment G = mean of x xᵀ of a layer's inputs, (cols, cols), checked, with its proof of curvature.

    Build one and pass it to several ``MaskProblem`` objects to share the checks (q/k/v read the same inputs).

    Args:
        matrix: (cols, cols), float; symmetric up to float noise (the symmetric part is used), finite, and positive
            semidefinite up to −1e-3 in correlation scaling.
        name: name of the matrix in error messages.

    Raises:
        RelaxPruneError: the matrix is not square, not finite, not symmetric, or clearly not PSD.
    """

    def __init__(self, matrix: Tensor, name: str = "gram") -> None:
        """Check the matrix; see the class for what is refused."""
        self.name = name
        if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise RelaxPruneError(f"{name} must be a square (cols, cols) tensor, got {got}")
        if not matrix.is_floating_point():
            raise RelaxPruneError(f"{name} must hold floats, got {matrix.dtype}")
        if not bool(torch.isfinite(matrix).all()):
            raise RelaxPruneError(f"{name} holds NaN or Inf; check the inputs it was computed from")
        matrix = matrix.detach()
        if matrix.dtype not in (torch.float32, torch.float64):
            matrix = matrix.float()
        self.diagonal: Tensor = matrix.diagonal().clone()  # (cols,)
        self._check_diagonal(matrix)
        self.matrix: Tensor = self._symmetric(matrix)
        self._unchanged = Unchanged(**{name: self.matrix})
        self._remembered: dict[str, Tensor] = {}
        self._damped: dict[float, Gram] = {}
        self._damping = 0.0  # what ``damped`` has added
        self._copies: WeakValueDictionary[torch.dtype, Tensor] = WeakValueDictionary()

    @property
    def cols(self) -> int:
        """Number of columns."""
        return int(self.matrix.shape[0])

    @cached_property
    def scale(self) -> float:
        """Mean of the diagonal, or 1 for a zero matrix: what solvers divide by."""
        mean = float(self.diagonal.to(torch.float64).mean())
        return mean if mean > 0 else 1.0

    @property
    def proof(self) -> PsdProof:
        """What is proven about the spectrum.

        Raises:
            RelaxPruneError: an eigenvalue is below −1e-3, or the matrix was changed in place since it was checked.
        """
        self._unchanged.check()
        return self._proof

    @cached_property
    def _proof(self) -> PsdProof:
        """Prove how far below zero the spectrum can reach, in float64 and correlation scaling.

        A Cholesky factorisation that succeeds on C − 2s·I proves C ⪰ s·I > 0 when s bounds its backward error,
        n(n + 5)·u for a matrix with unit diagonal (Higham, Accuracy and Stability, theorem 10.3), plus the rounding
        of C itself. All eigenvalues are computed only if that fails.

        Raises:
            RelaxPruneError: an eigenvalue is below −1e-3.
        """
        correlation = self.correlation()
        n = correlation.shape[0]
        slack = n * (n + 8) * UNIT_ROUNDOFF
        if n == 0:
            return PsdProof(0.0, True, "cholesky", None, 0.0)
        if _factorises(correlation, -2 * slack):
            return PsdProof(0.0, True, "cholesky", None, slack)
        if _factorises(correlation, slack):
            return PsdProof(2 * slack, False, "cholesky", None, slack)
        eigenvalues = torch.linalg.eigvalsh(correlation)
        smallest = float(eigenvalues[0])
        slack = 4 * n * UNIT_ROUNDOFF * max(1.0, float(eigenvalues.abs().amax())) * max(1.0, n**0.5)
        if smallest < _REFUSED_BELOW:
            raise RelaxPruneError(
                f"{self.name} must be positive semidefinite, but its smallest eigenvalue in correlation scaling is "
                f"{smallest:.3g} (at least {_REFUSED_BELOW:g} is accepted); was it computed in too low a precision?"
            )
        shift = max(0.0, slack - smallest)
        return PsdProof(shift, shift == 0.0, "eigenvalues", smallest, slack)

    def proven_tightening(self, tightening: Tensor) -> Tensor:
        """Lower ``tightening`` evenly until C − Diag(tightening) is proven PSD, with C = Diag(G)^-½ G Diag(G)^-½.

        A row's Q − Diag(tightening ∘ q), q = diag(Q), is then convex, and on masks Σ tightening q m(1 − m) vanishes.

        Args:
            tightening: (cols,) float64; entries of columns with a zero diagonal are ignored.

        Returns:
            (cols,) float64, 0 where the diagonal is zero.
        """
        out = torch.where(self.isolated, tightening.to(torch.float64).clamp(max=1.0), 0.0)
        joined = (self.diagonal > 0) & ~self.isolated
        correlation = self.correlation(joined)
        n = correlation.shape[0]
        if n == 0:
            return out
        wanted = tightening.to(torch.float64)[joined]
        slack = n * (n + 12) * UNIT_ROUNDOFF * max(1.0, 1 + float(wanted.abs().amax()))
        floor = torch.full_like(wanted, -self.proof.shift)
        lower = 0.0
        while not _factorises(correlation, -(wanted - lower) - slack):
            lower = max(2 * lower, slack)
            if bool((wanted - lower <= floor).all()):
                wanted, lower = floor, 0.0
                break
        out[joined] = wanted - lower
        return out

    @cached_property
    def isolated(self) -> Tensor:
        """Columns that are not correlated with any other: (cols,) bool."""
        return (self.diagonal > 0) & ((self.matrix != 0).sum(dim=1) == 1)

    def remember(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` returns, computed once per Gram for all rows and layers."""
        self._unchanged.check()
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def damped(self, damping: float) -> Gram:
        """Return G + damping · mean(diag G) · I, prepared once for all layers that share G; G for 0."""
        if damping == 0:
            return self
        self._unchanged.check()
        if damping not in self._damped:
            matrix = self.matrix.clone()
            matrix.diagonal().add_(damping * self.scale)
            self._damped[damping] = Gram(matrix, self.name)
            self._damped[damping]._damping = self._damping + damping * (1 + self._damping)
        return self._damped[damping]

    def lacking(self, damping: float) -> float:
        """Return the share of the mean diagonal to add so that this Gram has ``damping`` in all, 0 if it has that."""
        return max(0.0, damping - self._damping) / (1 + self._damping)

    @cached_property
    def neighbours(self) -> Neighbours:
        """The most correlated columns of each column, found once for all rows and layers."""
        return Neighbours.of(self.matrix)

    def unit(self, dtype: torch.dtype) -> float:
        """Return what inputs are divided by in ``dtype``: 1, or the power of 2 that their squares need to fit it."""
        fits = torch.finfo(dtype).max >= torch.finfo(self.matrix.dtype).max
        if fits or _NARROW_RANGE[0] <= self.scale <= _NARROW_RANGE[1]:
            return 1.0
        return 2.0 ** round(math.log2(self.scale) / 2)

    def in_dtype(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix in a dtype, (cols, cols), over the square of ``unit``; one copy for all that use it."""
        if dtype == self.matrix.dtype:
            return self.matrix
        matrix = self._copies.get(dtype)
        if matrix is None:
            unit = self.unit(dtype)
            scaled = self.matrix if unit == 1 else self.matrix / unit**2
            matrix = self._copies[dtype] = scaled.to(dtype)
        return matrix

    def correlation(self, columns: Tensor | None = None) -> Tensor:
        """Return Diag(G)^-½ G Diag(G)^-½ in float64 over some columns (bool), or all with a positive diagonal.

        Chosen columns with a zero diagonal have 1 there.
        """
        live = self.diagonal > 0 if columns is None else columns
        matrix = self.matrix if bool(live.all()) else self.matrix[live][:, live]
        diagonal = self.diagonal[live].to(torch.float64)
        root = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        correlation = matrix.to(torch.float64, copy=True)
        correlation.mul_(root.unsqueeze(1)).mul_(root)
        correlation.diagonal().fill_(1.0)
        return correlation

    def full_correlation(self) -> Tensor:
        """Return ``correlation`` over all columns, (cols, cols) float64: inputs that never fire have 1 there."""
        return self.correlation(torch.ones_like(self.diagonal, dtype=torch.bool))

    def _check_diagonal(self, matrix: Tensor) -> None:
        """Refuse a negative diagonal entry, or a zero one with a non-zero entry in its column."""
        if bool((self.diagonal < 0).any()):
            column = int(self.diagonal.argmin())
            raise RelaxPruneError(
                f"{self.name} must be positive semidefinite, but its diagonal is "
                f"{float(self.diagonal[column]):.3g} at column {column}"
            )
        dead = self.diagonal == 0
        if bool(dead.any()) and bool((matrix[dead] != 0).any()):
            column = int(((matrix != 0).any(dim=1) & dead).nonzero()[0])
            raise RelaxPruneError(
                f"{self.name} must be positive semidefinite, but column {column} has a zero diagonal and "
                "non-zero entries elsewhere"
            )

    def _symmetric(self, matrix: Tensor) -> Tensor:
        """Return the symmetric part, which alone enters the objective; refuse asymmetry beyond float noise."""
        root = self.diagonal.sqrt()
        exact = True
        for part in row_blocks(matrix.shape[0], 3 * matrix.element_size() * matrix.shape[0], _BAND_BYTES):
            difference = (matrix[part] - matrix[:, part].T).abs_()
            exact = exact and not bool(difference.any())
            excess = difference - _ASYMMETRY * root[part].unsqueeze(1) * root
            if bool((excess > 0).any()):
                i, j = divmod(int(excess.argmax()), matrix.shape[1])
                i += part.start
                raise RelaxPruneError(
                    f"{self.name} must be symmetric, but {self.name}[{i}, {j}] is {float(matrix[i, j]):.6g} and "
                    f"{self.name}[{j}, {i}] is {float(matrix[j, i]):.6g}"
                )
        return matrix.contiguous() if exact else (matrix + matrix.T).mul_(0.5)


def _factorises(correlation: Tensor, shift: float | Tensor) -> bool:
    """Return whether ``correlation`` + Diag(shift) has a Cholesky factor; the argument is unchanged."""
    correlation.diagonal().add_(shift)
    _, info = torch.linalg.cholesky_ex(correlation)
    correlation.diagonal().fill_(1.0)
    return int(info) == 0
