"""What every set of masks offers: a linear oracle, rounding, a feasibility check and coupled blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RelaxPruneError
from .selection import in_box, with_fixed
from .vertices import block_vertices

Shape = tuple[int, int]

FIXED_COUNTS = ("fixed_kept", "fixed_pruned")  # what a face says of its entries in ``to_dict``
KINDS: dict[str, type[Polytope]] = {}


@dataclass(frozen=True)
class Polytope(ABC):
    """The convex hull of a set of feasible masks of shape (rows, cols).

    Subclasses define their set in their docstring and give an exact linear minimisation oracle. ``kind`` names the set
    in files; two polytopes are equal when their options are.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the set under its ``kind``, by which files name it."""
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            KINDS[cls.kind] = cls

    @abstractmethod
    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError if no mask of this ``shape`` (rows, cols) can be in the set."""

    @abstractmethod
    def kept(self, shape: Shape) -> int:
        """Return how many entries of a (rows, cols) mask are kept (the most, for an "at most" set)."""

    @abstractmethod
    def lmo(self, gradient: Tensor) -> Tensor:
        """Minimise ⟨gradient, v⟩ over the set.

        If several vertices tie, any of them is returned, always the same for the same input: a rule for ties would cost
        about a tenth of a matrix product per call, and only ``round``, which has one, decides masks.

        Args:
            gradient: (rows, cols), any float dtype, finite or ±inf.

        Returns:
            A vertex v, (rows, cols) of 0 and 1 in the dtype of ``gradient``.
        """

    def near_lmo(self, gradient: Tensor, hint: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return a point of the set that minimises ⟨gradient, v⟩ or nearly so, for steps that need no exact vertex.

        Args:
            gradient: (rows, cols), any float dtype, finite.
            hint: what the last call returned for the same rows, or None.

        Returns:
            The point, (rows, cols) in the dtype of ``gradient``, and a hint for the next call: a line per coupled
            block, or None if ``lmo`` answered.
        """
        return self.lmo(gradient), None

    def lmo_bound(self, gradient: Tensor, kept: Tensor | None = None, pruned: Tensor | None = None) -> Tensor:
        """Bound ⟨gradient, v⟩ from below over the set, per coupled block; certificates rely on it.

        A set whose oracle is not exact to the last digit subtracts what it cannot prove.

        Args:
            gradient: (rows, cols), any float dtype, finite.
            kept: (rows, cols) bool, entries where v = 1, or None.
            pruned: (rows, cols) bool, entries where v = 0, or None.

        Returns:
            (blocks,) float64.
        """
        wide = gradient.to(torch.float64)
        return self.block_sum(wide * self.lmo(with_fixed(wide, kept, pruned, -torch.inf)))

    def face_lmo(self, gradient: Tensor, point: Tensor, tolerance: float = 0.0) -> Tensor:
        """Minimise ⟨gradient, v⟩ over the minimal face that contains ``point``: its entries at 0 and 1 stay there.

        The bounds 0 and 1 define the face of a count, so infinite costs on the entries at a bound make ``lmo`` exact;
        an "at most" count that is tight at the point is tight on the face. Negate the gradient for an away vertex.

        Args:
            gradient: (rows, cols), any float dtype, finite.
            point: (rows, cols), in the set up to rounding.
            tolerance: entries this near to 0 or 1, and counts this near to full, count as reached.

        Returns:
            A vertex of the set, (rows, cols) of 0 and 1 in the dtype of ``gradient``.
        """
        costs = gradient.masked_fill(point <= tolerance, torch.inf).masked_fill_(point >= 1 - tolerance, -torch.inf)
        vertex = self.lmo(costs)
        if not self.is_at_most():
            return vertex
        index, keep = self.cells((point.shape[0], point.shape[1]))
        blocks = point.reshape(-1, self.rows_per_block((point.shape[0], point.shape[1])) * point.shape[1])
        index = index.to(point.device)
        rounding = 8 * index.shape[1] * torch.finfo(point.dtype).eps
        tight = blocks[:, index].sum(dim=2) >= keep - max(tolerance, rounding)  # (blocks, cells)
        full = torch.zeros_like(blocks, dtype=torch.bool)
        full[:, index.reshape(-1)] = tight.repeat_interleave(index.shape[1], dim=1)
        return torch.where(full.view(point.shape), self.with_share(1.0).lmo(costs), vertex)

    @abstractmethod
    def round(self, point: Tensor) -> Tensor:
        """Return the feasible mask nearest to ``point``: the largest entries are kept.

        Ties go to the lowest column (over a layer: to the lowest row, then column). Transposable sets return one of the
        tied masks, always the same for the same input.

        Args:
            point: (rows, cols), any float dtype; saliencies are welcome too.

        Returns:
            (rows, cols) bool, exactly feasible.
        """

    @abstractmethod
    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether ``point`` (rows, cols), a mask or relaxed one, is in the set up to ``tolerance`` a count."""

    def projects(self) -> bool:
        """Return whether the set has ``project``."""
        return False

    def project(self, point: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the point x of the set nearest to ``point``: the least Σ w (x − point)².

        Args:
            point: (rows, cols), any float dtype; an entry of +∞ stays at 1, one of −∞ at 0.
            weights: (rows, cols), nonnegative, or None for all alike.

        Returns:
            (rows, cols) in the dtype of ``point``.

        Raises:
            RelaxPruneError: the set has no projection; see ``projects``.
        """
        raise RelaxPruneError(
            f"a {self.kind} set has no projection; use a solver that needs only a linear oracle, such as fw"
        )

    def rows_per_block(self, shape: Shape) -> int:
        """Return how many consecutive rows share a count: the height of one coupled block."""
        return 1

    def group_size(self, shape: Shape) -> int:
        """Return how many consecutive columns of a row share a count: all of them, or a group."""
        return shape[1]

    def counts_columns(self) -> bool:
        """Return whether columns have counts inside group x group tiles: exchanges inside a row then leave the set."""
        return False

    def prices(self, gradient: Tensor) -> Tensor:
        """Return the prices, at a gradient, of counts that are not an equation of one row, so that rows separate.

        These are the counts that join several rows, and "at most" counts.

        Args:
            gradient: (rows, cols) float64, of a relaxation at its minimum.

        Returns:
            (rows, cols), π with Σ π m the same for all masks of an exact set, and least for masks of an "at most" set
            that keep all they may; 0 if all counts are equations of one row.
        """
        return torch.zeros_like(gradient)

    def fixed(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the entries that the set fixes to kept and to pruned, (rows, cols) bool each, or None for none."""
        return None, None

    def cells(self, shape: Shape) -> tuple[Tensor, int]:
        """Return which entries of one coupled block of a (rows, cols) mask share a count, and the count.

        Returns:
            (cells, n) int64, flat indices into a block of (rows_per_block, cols), and the kept entries of each cell.
        """
        height = self.rows_per_block(shape)
        size = self.group_size(shape) if height == 1 else height * shape[1]
        index = torch.arange(height * shape[1]).view(-1, size)
        return index, self.kept(shape) * size // (shape[0] * shape[1])

    def vertices(self, shape: Shape) -> Tensor:
        """Return every mask of ONE coupled block of a (rows, cols) mask: (masks, rows_per_block, cols) bool.

        Raises:
            RelaxPruneError: more than 2^20 masks, or blocks that differ because entries are fixed.
        """
        height = self.rows_per_block(shape)
        kept, pruned = self.fixed()
        if shape[0] != height and (kept is not None or pruned is not None):
            raise RelaxPruneError(
                f"shape must be one coupled block of {height} x {shape[1]} if entries are fixed, got {shape}"
            )
        cells, keep = self.cells(shape)
        masks = block_vertices(height * shape[1], cells, keep, self.is_at_most(), kept, pruned)
        return masks.view(-1, height, shape[1])

    @property
    def label(self) -> str:
        """The name of the set in error messages."""
        return self.kind

    def separable(self, shape: Shape) -> bool:
        """Return whether every entry of a (rows, cols) mask has one count only.

        If so, exchanges inside rows (inside groups of columns) keep all counts.
        """
        cells, _ = self.cells(shape)
        return cells.numel() == self.rows_per_block(shape) * shape[1]

    def loosened(self) -> Polytope:
        """Return the set with the same fixed entries and no counts: rows become independent.

        If the set is ``separable``, a search by exchanges over the looser set never leaves this one.
        """
        return AnyMask()

    def chosen_from(self) -> Polytope | None:
        """Return the set over which rows are solved alone before ``choice`` leaves some dense; None if none are."""
        return None

    def only_dense(self, kept: Tensor) -> Tensor:
        """Return which rows must be left dense, (rows,) bool, if the entries ``kept`` (rows, cols) bool are kept."""
        return torch.zeros_like(kept[:, 0])

    def choice(self, saved: Tensor) -> Tensor:
        """Return which rows to leave dense, exactly, if ``chosen_from`` gives a set.

        Args:
            saved: (rows,), by how much each dense row lowers the objective.

        Returns:
            (rows,) bool, of the largest sum of ``saved``.
        """
        return torch.zeros_like(saved, dtype=torch.bool)

    def on_columns(self, start: int, stop: int, shape: Shape) -> Polytope | None:
        """Return the set of the columns from ``start`` to ``stop`` of a (rows, cols) mask.

        Masks of neighbouring parts, from the first column to the last, make up a mask of this set. None if the set
        cannot be cut there.
        """
        return self if (start, stop) == (0, shape[1]) else None

    def rows(self, index: Tensor | slice) -> Polytope:
        """Return the set for some whole coupled blocks, given by their rows."""
        return self

    def room(self, mask: Tensor) -> Tensor:
        """Return where ``mask`` (rows, cols) bool stays feasible with one more kept entry; nowhere for exact counts."""
        return torch.zeros_like(mask)

    @abstractmethod
    def with_share(self, share: float) -> Polytope:
        """Return the set with count floor(share · keep), in which SparseFW's alpha fixes the most salient weights."""

    def at_most_set(self) -> Polytope:
        """Return the smallest "at most" set that contains this one: the set of the SparseFW paper."""
        return self

    def is_at_most(self) -> bool:
        """Return whether masks may keep fewer entries than the count allows."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return the set as plain values for reports; ``polytope_from_dict`` is the inverse if nothing is fixed."""
        return {"kind": self.kind, **asdict(self)}

    def block_count(self, shape: Shape) -> int:
        """Return the number of coupled blocks of a (rows, cols) mask."""
        return shape[0] // self.rows_per_block(shape)

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` (rows, cols), or row sums (rows,), over each coupled block: (blocks,)."""
        sums = values.sum(dim=1) if values.dim() == 2 else values
        height = self.rows_per_block((sums.shape[0], 1))
        return sums if height == 1 else sums.view(-1, height).sum(dim=1)

    def to_rows(self, per_block: Tensor, rows: int) -> Tensor:
        """Repeat a value per coupled block (blocks,) as a column (rows, 1) that broadcasts over a matrix."""
        repeat = rows // per_block.shape[0]
        return (per_block if repeat == 1 else per_block.repeat_interleave(repeat)).unsqueeze(1)


@dataclass(frozen=True)
class AnyMask(Polytope):
    """{m ∈ [0, 1]^(rows × cols)}: no counts, so rows are independent. What every set is loosened to."""

    kind: ClassVar[str] = "any"

    def validate(self, shape: Shape) -> None:
        """Accept every shape."""

    def kept(self, shape: Shape) -> int:
        """Return the number of entries: all may be kept."""
        return shape[0] * shape[1]

    def is_at_most(self) -> bool:
        """Return True: fewer entries may be kept."""
        return True

    def lmo(self, gradient: Tensor) -> Tensor:
        """Take the entries below 0."""
        return (gradient < 0).to(gradient.dtype)

    def round(self, point: Tensor) -> Tensor:
        """Keep the entries above 0."""
        return point > 0

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Return whether every entry lies in [0, 1], up to ``tolerance``."""
        return in_box(point.to(torch.float64), tolerance)

    def room(self, mask: Tensor) -> Tensor:
        """Return the pruned entries."""
        return ~mask

    def with_share(self, share: float) -> Polytope:
        """Raise RelaxPruneError: there is no count to take a share of."""
        raise RelaxPruneError("a set of all masks has no count to take a share of; give it one, such as KSparse(keep)")
