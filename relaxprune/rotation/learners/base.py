"""What every learner of rotations offers, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.options.target import Target

_ORTHOGONAL = 1e-10  # most that an entry of RᵀR may differ from the identity's


@dataclass(frozen=True, eq=False)
class ReadMatrix:
    """A matrix whose inputs turn: in the rotated basis it is W R, and the Gram of its inputs Rᵀ G R.

    Attributes:
        weight: W, (..., rows, width).
        gram: G, (width, width).
        total: trace(W G Wᵀ), which is the same in every basis, a tensor without dimensions.
    """

    weight: Tensor
    gram: Tensor
    total: Tensor

    @classmethod
    def of(cls, weight: Tensor, gram: Tensor) -> ReadMatrix:
        """Return the matrix with its total worked out."""
        return cls(weight, gram, ((weight @ gram) * weight).sum())

    def turned(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (rows, width) weight in a rotated basis, and the (width,) mean squares of its inputs."""
        return (self.weight @ rotation).flatten(0, -2), ((self.gram @ rotation) * rotation).sum(dim=0)


@dataclass(frozen=True, eq=False)
class WrittenMatrix:
    """A matrix whose outputs turn: in the rotated basis it is Rᵀ W.

    Attributes:
        weight: W, (..., width, cols).
        energy: (cols,), the mean squares of its inputs, which stay; no more is used of their Gram.
        total: Σ W_ij² G_jj, which is the same in every basis, a tensor without dimensions.
    """

    weight: Tensor
    energy: Tensor
    total: Tensor

    @classmethod
    def of(cls, weight: Tensor, energy: Tensor) -> WrittenMatrix:
        """Return the matrix with its total worked out."""
        return cls(weight, energy, (weight.square() * energy).sum())

    def turned(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (rows, cols) weight in a rotated basis, and the (cols,) mean squares of its inputs."""
        return (rotation.mT @ self.weight).flatten(0, -2), self.energy


@dataclass(frozen=True, eq=False)
class Touched:
    """What a rotation touches in one block, all of it in float32 or all in float64, on one device."""

    reads: tuple[ReadMatrix, ...]
    writes: tuple[WrittenMatrix, ...]

    @property
    def matrices(self) -> tuple[ReadMatrix | WrittenMatrix, ...]:
        """All of them; there is at least one."""
        return (*self.reads, *self.writes)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one rotation is learned from.

    Attributes:
        blocks: what it touches, block by block; may be made only when it is asked for.
        width: of the rotation.
        target: the masks that are meant to follow.
        seed: of the order of the blocks.
        on_step: called with the number of steps done, and the loss.
    """

    blocks: Sequence[Touched]
    width: int
    target: Target
    seed: int = 0
    on_step: Callable[[int, float], None] = lambda step, loss: None


@dataclass(frozen=True)
class Learned:
    """A rotation, and what it was learned to lower.

    Attributes:
        rotation: (width, width) float64, orthogonal; hidden states x become x R.
        ratio: what it lowers, over what that was in the basis as it was: a mean over all matrices.
    """

    rotation: Tensor
    ratio: float

    def fault(self, width: int) -> str:
        """Return what is wrong with the rotation for a stream or a head of ``width`` channels; "" if nothing is."""
        found = self.rotation
        if found.shape != (width, width) or found.dtype != torch.float64:
            return f"shape {tuple(found.shape)} of {found.dtype}"
        error = (found.mT @ found - torch.eye(width, dtype=found.dtype, device=found.device)).abs().max()
        return "" if bool(error <= _ORTHOGONAL) else f"one whose RᵀR differs from the identity by {float(error):.1e}"


@dataclass(frozen=True, kw_only=True)
class Learner(ABC):
    """Finds rotations; a frozen dataclass of its options."""

    name: ClassVar[str]

    @abstractmethod
    def learn(self, lesson: Lesson) -> Learned:
        """Return a rotation; the same one for the same lesson."""


def orthonormal(matrix: Tensor) -> Tensor:
    """Return an orthogonal matrix that differs from a nearly orthogonal one by rounding only, in float64."""
    basis, triangle = torch.linalg.qr(matrix.detach().to(torch.float64))
    signs = triangle.diagonal().sign()
    found: Tensor = basis * torch.where(signs == 0, torch.ones_like(signs), signs)
    return found
