"""Products with a matrix in less than float32, for solvers that tolerate it on devices that are faster at it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from .errors import RelaxPruneError

PRECISIONS = ("full", "tf32", "bf16")
_SWITCHED = Lock()
_PROBED = 512  # rows and columns: a device that uses TF32 at all uses it at this size


@dataclass(frozen=True)
class Lowered:
    """A matrix (n, n) that float32 tensors are multiplied by in less than float32; sums and results are float32.

    ``"tf32"`` leaves 10 bits of the mantissa of each factor, ``"bf16"`` 7. Where torch has no product of bfloat16
    factors with a float32 result, as on CPUs, float32 tensors that hold the rounded factors are multiplied instead: the
    same numbers, no faster.

    Attributes:
        precision: ``"tf32"`` or ``"bf16"``.
        matrix: (n, n) float32 or bfloat16.
    """

    precision: str
    matrix: Tensor

    @classmethod
    def of(cls, matrix: Tensor, precision: str) -> Lowered:
        """Prepare a float32 matrix (n, n)."""
        if precision == "tf32":
            return cls(precision, matrix)
        rounded = matrix.to(torch.bfloat16)
        return cls(precision, rounded if _widens(matrix.device) else rounded.to(matrix.dtype))

    def product(self, left: Tensor) -> Tensor:
        """Return left @ matrix: (rows, n) float32."""
        if self.precision == "tf32":
            return _tf32_product(left, self.matrix)
        rounded = left.to(torch.bfloat16)
        if self.matrix.dtype == torch.bfloat16:
            return torch.mm(rounded, self.matrix, out_dtype=left.dtype)
        return torch.mm(rounded.to(left.dtype), self.matrix)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise RelaxPruneError if ``device`` does not multiply in ``precision``."""
    if precision == "tf32" and not _has_tf32(device):
        raise RelaxPruneError(
            f'precision is "tf32", which {device} does not support; "full" is float32, and "bf16" works anywhere'
        )


def _tf32_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply with TF32 allowed, by torch's switch for the whole process, which is restored afterwards.

    On an accelerator the switch is on while the product is launched, not while it runs.
    """
    switches = torch.backends.cuda.matmul
    name, on = ("fp32_precision", "tf32") if hasattr(switches, "fp32_precision") else ("allow_tf32", True)
    with _SWITCHED:
        before = getattr(switches, name)
        setattr(switches, name, on)
        try:
            return torch.mm(left, right)
        finally:
            setattr(switches, name, before)


@cache
def _has_tf32(device: torch.device) -> bool:
    """Return whether a product with TF32 allowed rounds its factors, by trying it on the device."""
    finer = torch.full((_PROBED, _PROBED), 1 + 2.0**-12, device=device)  # TF32 has no such number
    return bool((_tf32_product(finer, torch.eye(_PROBED, device=device)) != finer).any())


@cache
def _widens(device: torch.device) -> bool:
    """Return whether the device has a product of bfloat16 factors with a float32 result."""
    one = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    try:
        return bool(torch.mm(one, one, out_dtype=torch.float32).dtype == torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):  # no kernel, or a torch before 2.8
        return False
