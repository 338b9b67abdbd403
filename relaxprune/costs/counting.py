"""Counting the work of torch operations as they are called, on small tensors or on ones without values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .work import Work

_HALF = (torch.float16, torch.bfloat16)
# Operations of factorisations of an (n, n) matrix, over n³, by name; LAPACK runs eigendecompositions at a tenth of a
# product's speed, which is in their number.
_FACTORS = {
    "linalg_cholesky_ex": 1 / 3,
    "cholesky_inverse": 2 / 3,
    "linalg_inv_ex": 2.0,
    "linalg_lu_factor_ex": 2 / 3,
    "linalg_ldl_factor_ex": 1 / 3,
    "linalg_eigh": 100.0,
    "_linalg_eigh": 100.0,
}
_SUBSTITUTIONS = {"cholesky_solve": 2.0, "linalg_solve_triangular": 1.0}  # over n² · right-hand sides
_TAKING = {"embedding", "index", "index_select", "gather"}  # read no more of their table than they put out
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh", "_local_scalar_dense"}


class WorkCounter(TorchDispatchMode):
    """Counts every operation while it is active.

    Args:
        width: columns of a Gram, to tell the work on (width, width) matrices apart; 0 for not.
    """

    def __init__(self, width: int = 0) -> None:
        TorchDispatchMode.__init__(self)
        self._width, self._launches = width, 0
        self._totals: dict[tuple[str, bool], float] = {}  # kind of work, and whether on (width, width)

    @property
    def work(self) -> Work:
        """The work of all operations so far."""
        return Work(launches=self._launches) + self.square + self._work(False)

    @property
    def square(self) -> Work:
        """The part of it on (width, width) matrices: passes over them, and factorisations."""
        return self._work(True)

    def add(self, work: Work) -> None:
        """Count work that was not seen."""
        self._launches += round(work.launches)
        for kind in ("flops", "half_flops", "bytes"):
            self._count(kind, getattr(work, kind), False)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return that torch need not guard against compilation here, which takes longer than counting."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` and count it, unless it only looks at memory in another way."""
        packet, named = func._overloadpacket, kwargs or {}
        if packet is torch.ops.aten._local_scalar_dense and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        out = func(*args, **named)
        name = packet.__name__
        if func.is_view or name in _FREE:
            return out
        self._launches += 1
        if packet in flop_registry:
            self._products(float(flop_registry[packet](*args, **named, out_val=out)), out, self._is_square(out))
        elif name in _TAKING:
            self._count("bytes", 2 * _bytes(out), False)
        else:
            tensors = [leaf for leaf in tree_leaves((args, named, out)) if isinstance(leaf, Tensor)]
            if name in _FACTORS or name in _SUBSTITUTIONS:
                matrices = [tensor for tensor in tensors if tensor.dim() >= 2]
                self._products(_factored(name, matrices), matrices[0], self._is_square(matrices[-1]))
            else:
                for tensor in tensors:
                    self._count("bytes", _bytes(tensor), self._is_square(tensor))
        return out

    def _products(self, flops: float, like: Tensor, square: bool) -> None:
        """Count operations in the dtype of a tensor."""
        if like.dtype in _HALF:
            self._count("half_flops", flops, square)
        else:
            self._count("flops", 2 * flops if like.dtype == torch.float64 else flops, square)

    def _count(self, kind: str, amount: float, square: bool) -> None:
        """Add to a total."""
        self._totals[kind, square] = self._totals.get((kind, square), 0.0) + amount

    def _work(self, square: bool) -> Work:
        """Return the totals as work."""
        return Work(**{kind: total for (kind, wide), total in self._totals.items() if wide == square})

    def _is_square(self, value: Any) -> bool:
        """Return whether a value is a matrix of ``width`` squared, or several of them."""
        shape = value.shape if isinstance(value, Tensor) else ()
        return len(shape) >= 2 and shape[-1] == shape[-2] == self._width


def _factored(name: str, matrices: list[Tensor]) -> float:
    """Return the operations of a factorisation, or of a substitution into one."""
    size = max(min(matrix.shape[-2:]) for matrix in matrices)
    stacked = max(matrix.numel() // max(1, matrix.shape[-1] * matrix.shape[-2]) for matrix in matrices)
    if name in _FACTORS:
        return _FACTORS[name] * stacked * float(size) ** 3
    return _SUBSTITUTIONS[name] * size * matrices[-1].numel()


def _bytes(tensor: Tensor) -> float:
    """Return the size of a tensor's memory; entries that are one in memory count once."""
    count = tensor.numel()
    if not tensor.is_contiguous():
        for size, step in zip(tensor.shape, tensor.stride(), strict=True):
            if step == 0 and size:
                count //= size
    return float(count * tensor.element_size())


@contextmanager
def counted(width: int = 0) -> Iterator[WorkCounter]:
    """Count the work of what is called inside.

    Tensors on the meta device have no values: code that asks for one is told 1, which is yes where it asks whether all
    values are finite, or all tokens count.

    Args:
        width: of Grams, to tell their work apart; 0 for not.
    """
    counter = WorkCounter(width)
    with torch.no_grad(), counter:
        yield counter
