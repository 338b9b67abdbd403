"""What an iterative solver carries from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Quadratic


class State(ABC):
    """The tensors of an iterative solver, and their cost.

    A tensor has one line per row of the problem, or per coupled block, or a single line that serves all of them.

    Attributes:
        iteration: iterations done.
        product_count: matrix products done, for the rows that are left.
    """

    iteration: int = 0
    product_count: int = 0

    @abstractmethod
    def point(self) -> Tensor:
        """Return the relaxed mask now, (rows, cols)."""

    @abstractmethod
    def relaxed(self) -> Tensor | None:
        """Return the relaxed mask at the end of the convex phase, (rows, cols), or None before that."""

    def select(self, index: Tensor) -> None:
        """Keep only the rows in ``index``, each a coupled block of its own, in place.

        Tensors of a single line stay: rows leave only from among several.
        """
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.dim() and len(value) > 1:
                setattr(self, name, value[index])

    def finite(self) -> Tensor:
        """Return whether the computation has stayed finite, as a tensor of one bool.

        Every floating-point tensor of the state is checked: NaN anywhere is a failure, and so is an infinity in a
        tensor with a number per entry, such as a point or a gradient. In one with a number per coupled block infinity
        may mean "none yet".
        """
        point = self.point()
        held = [value for value in vars(self).values() if isinstance(value, Tensor) and value.is_floating_point()]
        sound = []
        for value in (value for value in (point, *held) if value.numel()):
            ends = torch.stack(value.aminmax())  # one pass, and NaN comes through
            sound.append((torch.isfinite(ends) if value.shape == point.shape else ~torch.isnan(ends)).all())
        return torch.stack(sound).all()

    def full(self) -> bool:
        """Return whether the state has no memory left to go on, without waiting for the device."""
        return False

    def next_phase(self) -> bool:
        """Go on to the next phase, if there is one, once every coupled block is done with this one."""
        return False

    def may_leave(self) -> bool:
        """Return whether blocks that are done may leave now, or wait for the others to go on to the next phase."""
        return True


class GradientState(State):
    """A state with half the gradient at its point, which steps carry along; recomputed now and then, against drift.

    Args:
        problem: the working problem.
        start: (rows, cols) float, feasible.
    """

    refresh_every: ClassVar[int] = 50  # iterations

    def __init__(self, problem: Quadratic, start: Tensor) -> None:
        """Take the half gradient at the start: one product."""
        self.half_gradient = problem.half_gradient(start)  # (rows, cols)
        self.product_count = 1

    def refresh(self, problem: Quadratic) -> None:
        """Compute the half gradient from scratch."""
        self.half_gradient = problem.half_gradient(self.point())
        self.product_count += 1

    def refresh_when_due(self, problem: Quadratic) -> None:
        """Refresh every ``refresh_every`` iterations; call it at the beginning of a step."""
        if self.iteration and self.iteration % self.refresh_every == 0:
            self.refresh(problem)


class FirstOrderState(GradientState):
    """A relaxed mask m, which stays with the relaxation, and half the gradient there."""

    def __init__(self, problem: Quadratic, start: Tensor) -> None:
        """Begin at ``start`` (rows, cols)."""
        super().__init__(problem, start)
        self.mask = start.clone()  # (rows, cols)

    def point(self) -> Tensor:
        """Return m."""
        return self.mask

    def relaxed(self) -> Tensor:
        """Return m."""
        return self.mask
