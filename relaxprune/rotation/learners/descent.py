"""Learning a rotation by gradients: Adam on an orthogonal parametrisation, a few blocks at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from relaxprune.options.target import Target
from relaxprune.problems.checks import positive_number, whole_number

from .base import Learned, Learner, Lesson, Touched, orthonormal

_BETAS = (0.9, 0.95)
_REBASE = 10  # steps between two bases that steps start from, so that the map stays near its centre


@dataclass(frozen=True, kw_only=True)
class Descent(Learner, ABC):
    """Lowers the loss of a subclass by Adam, its rate falling along a cosine; a basis that is no better is not taken.

    What is lowered is the mean over matrices of the loss over that in the basis as it was, so that no few matrices with
    a large loss decide.

    Attributes:
        steps: how many.
        rate: the first step's.
        blocks: how many blocks each step looks at, in turn; all of their matrices are in use at once.
    """

    steps: int = 100
    rate: float = 0.01
    blocks: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            RelaxPruneError: naming the option.
        """
        whole_number("steps", self.steps, 1)
        positive_number("rate", self.rate)
        whole_number("blocks", self.blocks, 1)

    @abstractmethod
    def loss(self, weight: Tensor, energy: Tensor, total: Tensor, target: Target) -> Tensor:
        """Return what a matrix costs in a basis, a differentiable number that is to be lowered.

        Args:
            weight: (rows, cols).
            energy: (cols,), the mean squares of its inputs.
            total: trace(W G Wᵀ), a tensor without dimensions.
            target: the masks that are meant to follow.
        """

    def learn(self, lesson: Lesson) -> Learned:
        """Return the rotation after all steps, or none if the loss over all blocks did not fall."""
        like = lesson.blocks[0].matrices[0].weight
        start = torch.eye(lesson.width, dtype=like.dtype, device=like.device)
        starts = [self._losses(touched, start, lesson.target) for touched in lesson.blocks]
        found = orthonormal(self._descended(lesson, start, starts))
        with torch.no_grad():
            costs = [
                float(self._cost(touched, found.to(start), lesson.target, before))
                for touched, before in zip(lesson.blocks, starts, strict=True)
            ]
        ratio = sum(costs) / len(costs)
        return Learned(found, ratio) if ratio < 1 else Learned(start.to(torch.float64), 1.0)

    def _descended(self, lesson: Lesson, start: Tensor, starts: list[Tensor]) -> Tensor:
        """Return the rotation after all steps, as the parametrisation has it."""
        holder = nn.Linear(lesson.width, lesson.width, bias=False).to(start)
        # The Cayley map is one solve; the exponential is as good and takes several products more.
        orthogonal(holder, orthogonal_map="cayley")
        holder.weight = start  # becomes the base that steps start from
        optimizer = torch.optim.Adam(holder.parameters(), lr=self.rate, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / self.steps))
        )
        order = _in_turn(len(lesson.blocks), lesson.seed)
        with torch.enable_grad():
            for step in range(self.steps):
                chosen = [next(order) for _ in range(min(self.blocks, len(lesson.blocks)))]
                rotation = holder.weight
                costs = [self._cost(lesson.blocks[block], rotation, lesson.target, starts[block]) for block in chosen]
                loss = torch.stack(costs).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if step % _REBASE == _REBASE - 1:
                    holder.weight = orthonormal(holder.weight).to(start)
                lesson.on_step(step + 1, float(loss.detach()))
        return holder.weight.detach()

    def _cost(self, touched: Touched, rotation: Tensor, target: Target, starts: Tensor) -> Tensor:
        """Return the mean over the matrices of a block of their losses in a rotated basis, over those at the start."""
        tiny = torch.finfo(starts.dtype).tiny
        losses = [self.loss(*one.turned(rotation), one.total, target) for one in touched.matrices]
        return (torch.stack(losses) / starts.clamp_min(tiny)).mean()

    def _losses(self, touched: Touched, rotation: Tensor, target: Target) -> Tensor:
        """Return (matrices,), the losses of a block in a rotated basis, without gradients."""
        with torch.no_grad():
            return torch.stack([self.loss(*one.turned(rotation), one.total, target) for one in touched.matrices])


def _in_turn(count: int, seed: int) -> Iterator[int]:
    """Yield the numbers of blocks for ever, all of them before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
