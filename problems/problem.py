"""What is asked: the mask of a polytope that minimises a quadratic, with weights that stay or move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from .checks import check_finite, check_floats, check_mask
from .errors import RelaxPruneError
from .gram import Gram, PsdProof
from .objective import Grams, Objective
from .polytopes import Face, Polytope
from .polytopes.base import Shape
from .polytopes.joined import joined
from .precision import row_blocks
from .unchanged import Unchanged
from .working import Working

_JUDGE_BYTES = 256 * 2**20  # of temporaries while masks or weights are judged
_JUDGE_MATRICES = 5


class BaseProblem(ABC):
    """Find a mask of a polytope and, if ``moves_weights``, new values for the weights that it keeps.

    An answer is a mask (rows, cols), or weights (rows, cols) that are 0 outside one. Everything reported about it is
    computed in float64.
    """

    polytope: Polytope
    moves_weights: ClassVar[bool]

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """(rows, cols) of an answer."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the problem's tensors live."""

    @property
    @abstractmethod
    def reference(self) -> float | None:
        """The objective that relative errors are divided by, float64; None if there is no natural one."""

    @property
    @abstractmethod
    def mask_problem(self) -> Problem:
        """The mask problem that a solver sees."""

    @abstractmethod
    def block_objective(self, answer: Tensor, memory_bytes: int = _JUDGE_BYTES) -> Tensor:
        """Return the objective of each coupled block at an answer (rows, cols): (blocks,) float64."""

    def objective(self, answer: Tensor, memory_bytes: int = _JUDGE_BYTES) -> float:
        """Return the objective at an answer (rows, cols), in float64."""
        return float(self.block_objective(answer, memory_bytes).sum())

    def relative(self, objective: float) -> float | None:
        """Return ``objective`` / ``reference``: the share of the layer's output energy that is lost."""
        return None if self.reference is None else relative_error(objective, self.reference)

    def relative_error(self, answer: Tensor) -> float | None:
        """Return the objective at an answer (rows, cols) / ``reference``; None without a reference."""
        return self.relative(self.objective(answer))


class Problem(BaseProblem):
    """Minimise a quadratic over the masks of a polytope: what a solver sees.

    Rows share a matrix, and each has a term of its own. ``working`` hands solvers a normalised copy in a faster dtype.

    Args:
        term: (rows, cols), what each row has of its own, any float dtype.
        matrix: (cols, cols), what they share, as a tensor or a prepared ``Gram``; or an ``Objective``.
        polytope: the set of masks.
        fixed_kept: (rows, cols) bool, entries that every mask keeps, or None.
        fixed_pruned: (rows, cols) bool, entries that every mask prunes, or None.

    Raises:
        RelaxPruneError: sizes, dtypes or values that cannot be right.
    """

    moves_weights: ClassVar[Literal[False]] = False
    names: ClassVar[tuple[str, str]]  # what sentences call the term and the matrix
    saliencies: ClassVar[tuple[str, ...]]  # the scores that a problem of this kind has
    default_start: ClassVar[str]  # the one whose mask a solve starts from

    def __init__(
        self,
        term: Tensor,
        matrix: Grams | Objective,
        polytope: Polytope,
        fixed_kept: Tensor | None = None,
        fixed_pruned: Tensor | None = None,
    ) -> None:
        """Check the input; see the class."""
        name, shared = self.names
        check_floats(name, term)
        if not isinstance(polytope, Polytope):
            raise RelaxPruneError(f"polytope must be a Polytope such as KSparse or NM, got {type(polytope).__name__}")
        self.term: Tensor = term.detach()
        self.minimised: Objective = Objective.of(matrix, shared).fitted(self.term, self.names)
        check_finite(name, term)
        if fixed_kept is not None or fixed_pruned is not None:
            polytope = Face(polytope, fixed_kept, fixed_pruned)
        self.polytope: Polytope = polytope if self.minimised.outputs is None else joined(polytope)
        self.polytope.validate(self.shape)
        self.minimised.check_blocks(polytope.rows_per_block(self.shape))
        given = self.minimised.own_tensors() | {name: self.term}
        self._unchanged = Unchanged(**given, fixed_kept=fixed_kept, fixed_pruned=fixed_pruned)
        _ = self.minimised.proof  # a matrix that is clearly not PSD is refused here, before any long work

    @property
    def prepared(self) -> Gram:
        """The matrix of all rows; ``Objective.gram`` refuses rows with several."""
        return self.minimised.gram

    @property
    def mask_problem(self) -> Self:
        """The problem itself."""
        return self

    @property
    def shape(self) -> Shape:
        """(rows, cols) of a mask."""
        rows, cols = self.term.shape
        return int(rows), int(cols)

    @property
    def device(self) -> torch.device:
        """Where the problem's tensors live."""
        return self.term.device

    @property
    def proof(self) -> PsdProof:
        """What is proven about curvature: Q + shift · Diag(s) is semidefinite for every row, s ``shared_diagonal``.

        Raises:
            RelaxPruneError: a tensor was changed in place since it was checked.
        """
        self._unchanged.check()
        return self.minimised.proof

    @abstractmethod
    def half_gradient(self, point: Tensor) -> Tensor:
        """Return half the gradient at a mask or relaxed mask, (rows, cols) float64."""

    @abstractmethod
    def row_value(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return the objective per row, (rows,) float64, from the half gradient at ``point``."""

    @property
    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal q of every row's Q, (rows, cols) float64."""

    @property
    def shared_diagonal(self) -> Tensor:
        """The part of ``diagonal`` that is of the shared matrix, (rows, cols) float64: what a tightening multiplies."""
        return self.diagonal

    @abstractmethod
    def rounding(self, point: Tensor) -> Tensor:
        """Bound the rounding error of the value and of a tangent at ``point`` over all masks: (rows,) float64."""

    def terms(self) -> int:
        """Return the number of terms of the longest sum of a coupled block, for bounds on rounding."""
        rows, cols = self.shape
        return cols + self.minimised.rank + (rows if self.polytope.rows_per_block(self.shape) > 1 else 0)

    @property
    def nonnegative(self) -> bool:
        """Whether the objective is at least 0 wherever Q is positive semidefinite."""
        return False

    def flattening(self, point: Tensor, half_gradient: Tensor) -> Tensor:
        """Return the factor of z = 1 − m of each coupled block whose tangent bounds better: (blocks,).

        Different from 1 only if the half gradient is linear in z, so that it scales with z.

        Args:
            point: (rows, cols) float64.
            half_gradient: (rows, cols) float64, at ``point``.
        """
        return point.new_ones(self.polytope.block_count(self.shape))

    @abstractmethod
    def row_quadratic(self, row: int) -> tuple[Tensor, Tensor]:
        """Return one row's objective up to a constant as mᵀ Q m + linear·m: (cols, cols) and (cols,) float64."""

    @abstractmethod
    def working(self, dtype: torch.dtype = torch.float32) -> Working:
        """Return the normalised copy that solvers compute with."""

    def rows(self, index: slice | Tensor) -> Self:
        """Return the problem of some whole coupled blocks, with the same matrix; nothing is checked again."""
        parts = {"term": self.term[index], "minimised": self.minimised.rows(index)}
        return self._replaced(**parts, polytope=self.polytope.rows(index))

    def over(self, polytope: Polytope) -> Self:
        """Return the same objective over another polytope, for relaxations and restrictions inside a solver."""
        return self._replaced(polytope=polytope)

    def _replaced(self, **parts: Any) -> Self:
        """Return a copy with other parts, unchecked and without the values cached for the old ones."""
        copied = object.__new__(type(self))
        for name in ("term", "minimised", "polytope", "_unchanged"):
            setattr(copied, name, parts.get(name, getattr(self, name)))
        return copied

    @abstractmethod
    def score(self, name: str, power: float = 0.5, rows: slice = slice(None)) -> Tensor:
        """Return one of ``saliencies``, for all or some rows, float64: what warm starts and one-shot solvers round.

        Args:
            name: which saliency.
            power: RIA's exponent.
            rows: which rows.

        Raises:
            RelaxPruneError: as ``check_saliency``.
        """

    def check_saliency(self, name: str, asker: str = "score", remedy: str = "ask for one that it has") -> None:
        """Raise RelaxPruneError, in a sentence about ``asker``, if a problem of this kind has no such saliency."""
        if name not in self.saliencies:
            raise RelaxPruneError(
                f"{asker} needs the saliency {name!r}, which a {type(self).__name__} does not have (it has "
                f"{', '.join(self.saliencies)}); {remedy}"
            )

    def round_parts(self, values: Callable[[slice], Tensor], memory_bytes: int) -> Tensor:
        """Round values to a feasible mask, some coupled blocks at a time.

        Args:
            values: returns the values of some rows; large ones are kept.
            memory_bytes: bound on temporaries.

        Returns:
            (rows, cols) bool.
        """
        mask = torch.empty(self.shape, dtype=torch.bool, device=self.device)
        for part, piece in self.split(_JUDGE_MATRICES, memory_bytes):
            mask[part] = piece.polytope.round(values(part))
        return mask

    def check_mask(self, mask: object, name: str = "mask", memory_bytes: int = _JUDGE_BYTES) -> None:
        """Raise RelaxPruneError, under the name ``name``, unless ``mask`` is a feasible (rows, cols) bool mask."""
        given = check_mask(name, mask, self.shape, self.device)
        if not self.feasible(given, memory_bytes):
            raise RelaxPruneError(
                f"{name} must lie in {self.polytope!r}, but its counts do not: it keeps {int(given.sum())} of "
                f"{given.numel()} entries"
            )

    def feasible(self, mask: Tensor, memory_bytes: int = _JUDGE_BYTES) -> bool:
        """Return whether a mask (rows, cols) lies in the polytope."""
        return all(piece.polytope.contains(mask[part]) for part, piece in self.split(_JUDGE_MATRICES, memory_bytes))

    def block_objective(self, answer: Tensor, memory_bytes: int = _JUDGE_BYTES) -> Tensor:
        """Return the objective of each coupled block at a mask or relaxed mask: (blocks,) float64."""
        pieces = [
            problem.polytope.block_sum(problem.row_value(answer[part], problem.half_gradient(answer[part])))
            for part, problem in self.split(_JUDGE_MATRICES, memory_bytes)
        ]
        return torch.cat(pieces)

    def split(self, matrices: int, budget_bytes: int) -> Iterator[tuple[slice, Self]]:
        """Yield slices of whole coupled blocks that share a Gram, with their problems, that fit a memory budget.

        Args:
            matrices: number of float64 tensors of the problem's shape held at once, Fisher terms aside.
            budget_bytes: bound on their total size; at least one coupled block is yielded at a time.
        """
        rows, cols = self.shape
        height = self.polytope.rows_per_block(self.shape)
        if height == rows:
            yield slice(0, rows), self
            return
        block_bytes = 8 * (matrices + self.minimised.rank) * cols * height
        for run in self.minimised.runs(rows):
            for blocks in row_blocks((run.stop - run.start) // height, block_bytes, budget_bytes):
                part = slice(run.start + blocks.start * height, run.start + blocks.stop * height)
                yield part, self.rows(part)

    def gradient(self, point: Tensor) -> Tensor:
        """Return the gradient at a mask or relaxed mask: (rows, cols) float64."""
        return 2 * self.half_gradient(point.to(torch.float64))


def relative_error(objective: float, reference: float) -> float:
    """Return ``objective`` / ``reference``, or 0 if nothing can be lost."""
    return objective / reference if reference > 0 else 0.0
