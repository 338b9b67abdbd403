"""What every set of masks offers: a linear oracle, rounding, a feasibility check, and its coupled blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RelaxPruneError

Shape = tuple[int, int]

_KINDS: dict[str, type[Polytope]] = {}


@dataclass(frozen=True)
class Polytope(ABC):
    """The convex hull of a set of feasible masks of shape (rows, cols).

    Subclasses write their set in mathematics in their docstring and give an exact linear minimisation oracle.
    ``kind`` names the set in files; two polytopes are equal when their options are.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the set under its ``kind``, so that files can name it."""
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @abstractmethod
    def validate(self, shape: Shape) -> None:
        """Raise RelaxPruneError when no mask of this ``shape`` (rows, cols) can be in the set as described."""

    @abstractmethod
    def kept(self, shape: Shape) -> int:
        """Return how many entries of a (rows, cols) mask are kept (the most, for an "at most" set)."""

    @abstractmethod
    def lmo(self, gradient: Tensor) -> Tensor:
        """Minimise ⟨gradient, v⟩ over the set.

        Args:
            gradient: (rows, cols), any float dtype, finite or ±inf.

        Returns:
            A vertex v, (rows, cols) of 0 and 1 in the dtype of ``gradient``.
        """

    @abstractmethod
    def round(self, point: Tensor) -> Tensor:
        """Return the feasible mask nearest to ``point``: the largest entries are kept, ties by the lowest column.

        Args:
            point: (rows, cols), any float dtype; saliencies are welcome too.

        Returns:
            (rows, cols) bool, exactly feasible.
        """

    @abstractmethod
    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        """Tell whether ``point``, a (rows, cols) mask or relaxed mask, lies in the set, up to ``tolerance`` a count."""

    def rows_per_block(self, shape: Shape) -> int:
        """Return how many consecutive rows share a count: the height of one coupled block."""
        return 1

    def group_size(self, shape: Shape) -> int:
        """Return how many consecutive columns of a row share a count: all of them, or a group."""
        return shape[1]

    def fixed(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the (rows, cols) bool entries that the set fixes to kept and to pruned, None for none."""
        return None, None

    def rows(self, index: Tensor | slice) -> Polytope:
        """Return the set for a selection of whole coupled blocks, given by their rows."""
        return self

    def room(self, mask: Tensor) -> Tensor:
        """Return where ``mask`` (rows, cols) bool stays feasible with one more kept entry: nowhere for exact counts."""
        return torch.zeros_like(mask)

    @abstractmethod
    def with_share(self, share: float) -> Polytope:
        """Return the set whose count is floor(share · keep): where SparseFW's alpha fixes the most salient weights."""

    def at_most_set(self) -> Polytope:
        """Return the smallest "at most" set that contains this one: the set of the SparseFW paper."""
        return self

    def is_at_most(self) -> bool:
        """Tell whether masks may keep fewer entries than the count allows."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return the set as plain values; ``polytope_from_dict`` is the inverse."""
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


def polytope_from_dict(values: dict[str, Any]) -> Polytope:
    """Build the set that ``Polytope.to_dict`` described."""
    options = dict(values)
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise RelaxPruneError(f"polytope kind is {kind!r}; known kinds are {', '.join(sorted(_KINDS))}")
    build: Callable[..., Polytope] = _KINDS[kind]
    return build(**options)


def whole_number(name: str, value: object, low: int) -> None:
    """Raise unless ``value`` is an int of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise RelaxPruneError(f"{name} must be a whole number of at least {low}, got {value!r}")


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` smallest entries of each row of ``scores`` (rows, n) with 1, in the dtype of ``scores``.

    Exact in count; ties fall as ``torch.topk`` breaks them, which any linear oracle may do.
    """
    cols = scores.shape[1]
    if count >= cols:
        return torch.ones_like(scores)
    vertex = torch.zeros_like(scores)
    if count == 0:
        return vertex
    # The smaller side is selected: topk's cost grows with the number selected.
    pick = min(count, cols - count)
    index = scores.topk(pick, dim=1, largest=pick != count, sorted=False).indices
    vertex.scatter_(1, index, 1.0)
    return vertex if pick == count else vertex.neg_().add_(1.0)


def largest_stable(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest entries of each row of ``scores`` (rows, n) as bool; ties go to the lowest index."""
    if count == 0 or count >= scores.shape[1]:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    threshold = scores.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above = scores > threshold
    tied = scores == threshold
    room = count - above.sum(dim=1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))


def counts_within(counts: Tensor, target: int, at_most: bool, tolerance: float) -> bool:
    """Tell whether every count is ``target`` (at most ``target``), up to ``tolerance``."""
    excess = counts - target
    worst = excess.amax() if at_most else excess.abs().amax()
    return bool(worst <= tolerance)


def in_box(point: Tensor, tolerance: float) -> bool:
    """Tell whether every entry lies in [0, 1] up to ``tolerance``; NaN does not."""
    return bool(((point >= -tolerance) & (point <= 1 + tolerance)).all())
