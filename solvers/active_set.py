"""An explicit active set per coupled block, and the pairwise moves between its vertices; what afw, pfw and bpfw share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError, Working

from .gap import within_gap
from .loop import IterativeSolver, Plan, State

_FIRST_SLOTS = 32
_GROWTH = 2
_REFRESH_EVERY = 50  # iterations between points and half gradients computed from scratch, against drift
_CHUNK = 2**22  # entries of vertices turned to floats at once


class ActiveSet:
    """Convex combinations of vertices, one per coupled block: Σ weight · vertex, weights > 0 exactly where active.

    Attributes:
        vertices: (slots, blocks, entries) bool; slots without weight hold leftovers.
        weights: (slots, blocks).
        keys: (slots, blocks) int64, a hash of each vertex.
        limit: the most bytes that the vertices may take.
    """

    def __init__(self, vertex: Tensor, limit: int) -> None:
        """Begin with one ``vertex`` (blocks, entries) of 0 and 1 in every block."""
        self.limit = limit
        blocks, entries = vertex.shape
        generator = torch.Generator().manual_seed(0)
        salt = torch.randint(-(2**62), 2**62, (entries,), generator=generator)
        self._salt = salt.to(vertex.device)  # wrapping sums of it are exact and order-free
        self.vertices = torch.empty(0, blocks, entries, dtype=torch.bool, device=vertex.device)
        self.weights = vertex.new_zeros(0, blocks)
        self.keys = torch.empty(0, blocks, dtype=torch.long, device=vertex.device)
        self._grow(_FIRST_SLOTS)
        self.vertices[0], self.weights[0], self.keys[0] = vertex > 0, 1.0, self._key(vertex)
        self._used = 1  # no slot from here on is active; never below the truth, lowered by ``trim``

    def sizes(self) -> Tensor:
        """Return the number of active vertices of each block: (blocks,) int64."""
        return (self.weights > 0).sum(dim=0)

    def select(self, index: Tensor) -> None:
        """Keep the blocks in ``index``."""
        self.vertices, self.weights, self.keys = (
            values[:, index] for values in (self.vertices, self.weights, self.keys)
        )

    def trim(self) -> None:
        """Forget slots past the last active one, and give memory back once three quarters are free."""
        active = (self.weights > 0).any(dim=1).nonzero()
        self._used = int(active.amax()) + 1 if len(active) else 1
        if self._used * _GROWTH**2 <= len(self.weights) and len(self.weights) > _FIRST_SLOTS:
            size = max(_FIRST_SLOTS, self._used * _GROWTH)
            self.vertices, self.weights, self.keys = (
                values[:size].clone() for values in (self.vertices, self.weights, self.keys)
            )

    def costs(self, gradient: Tensor) -> Tensor:
        """Return ⟨gradient, vertex⟩ for every slot in use, NaN where not active: (used, blocks)."""
        result = torch.empty_like(self.weights[: self._used])
        chunk = max(1, _CHUNK // max(1, gradient.numel()))
        for start in range(0, self._used, chunk):
            part = slice(start, min(start + chunk, self._used))
            lines = self.vertices[part].to(gradient.dtype)
            result[part] = torch.einsum("sbe,be->sb", lines, gradient)
        return result.masked_fill_(self.weights[: self._used] == 0, torch.nan)

    def at(self, slot: Tensor) -> Tensor:
        """Return the vertex in ``slot`` (blocks,) of each block: (blocks, entries), in the dtype of the weights."""
        return self.vertices[slot, torch.arange(len(slot), device=slot.device)].to(self.weights.dtype)

    def point(self) -> Tensor:
        """Return Σ weight · vertex per block, (blocks, entries), after scaling the weights to a sum of 1."""
        self.weights /= self.weights.sum(dim=0)
        total = torch.zeros(self.vertices.shape[1:], dtype=self.weights.dtype, device=self.weights.device)
        for slot in range(self._used):
            total.addcmul_(self.vertices[slot].to(total.dtype), self.weights[slot].unsqueeze(1))
        return total

    def slot_of(self, vertex: Tensor, wanted: Tensor) -> Tensor:
        """Return the slot of ``vertex`` (blocks, entries), put into a free one where it is new and ``wanted`` (blocks,).

        Raises:
            RelaxPruneError: the vertices would take more than ``limit`` bytes.
        """
        if self._used == len(self.weights):
            self.trim()
        if self._used == len(self.weights):
            self._grow(_GROWTH * self._used)
        key = self._key(vertex)
        active = self.weights[: self._used + 1] > 0
        same = active & (self.keys[: self._used + 1] == key)
        old = same.any(dim=0)
        # The first free slot: the one past those in use is always free.
        slot = torch.where(old, same.to(torch.uint8).argmax(dim=0), (~active).to(torch.uint8).argmax(dim=0))
        line = torch.arange(len(slot), device=slot.device)
        new = wanted & ~old
        self.vertices[slot, line] = torch.where(new.unsqueeze(1), vertex > 0, self.vertices[slot, line])
        self.keys[slot, line] = torch.where(new, key, self.keys[slot, line])
        self._used += 1
        return slot

    def _key(self, vertex: Tensor) -> Tensor:
        """Return a hash of each block's vertex: (blocks,) int64."""
        return ((vertex > 0) * self._salt).sum(dim=1)

    def _grow(self, slots: int) -> None:
        """Make room for ``slots`` vertices a block."""
        blocks, entries = self.vertices.shape[1:]
        if slots * blocks * entries > self.limit:
            raise RelaxPruneError(
                f"active_bytes is {self.limit}, but {slots} vertices for each of {blocks} coupled blocks of {entries} "
                f"entries take {slots * blocks * entries} bytes; raise it, or use dicg, which stores no active set"
            )
        more = slots - len(self.weights)
        self.vertices = torch.cat([self.vertices, self.vertices.new_zeros(more, blocks, entries)])
        self.weights = torch.cat([self.weights, self.weights.new_zeros(more, blocks)])
        self.keys = torch.cat([self.keys, self.keys.new_zeros(more, blocks)])


@dataclass
class Move:
    """One step of every block: along ``vertex`` − ``away`` or a mix, at most ``longest``.

    Attributes:
        direction: (blocks, entries).
        longest: (blocks,), the step at which a weight reaches 0 (or the vertex is reached).
        up, down: slots (blocks,) whose weight grows and shrinks.
        scale: (blocks,): weights are multiplied by 1 + scale · step first: −1 for Frank-Wolfe, 1 for away steps, else 0.
    """

    direction: Tensor
    longest: Tensor
    up: Tensor
    down: Tensor
    scale: Tensor


class ActiveSetState(State):
    """The relaxed mask, its active set, and the half gradient carried along."""

    def __init__(self, problem: Working, start: Tensor, plan: Plan, limit: int) -> None:
        """Begin at the vertex ``start`` (rows, cols)."""
        self.mask = start.clone()
        self.half_gradient = problem.half_gradient(start)
        self.blocks = problem.polytope.block_count(problem.shape)
        self.active = ActiveSet(start.reshape(self.blocks, -1), limit)
        self.gap_tolerance = plan.gap_tolerance
        self.iteration, self.product_count = 0, 1

    def point(self) -> Tensor:
        """Return m."""
        return self.mask

    def relaxed(self) -> Tensor:
        """Return m: the solver stays with the relaxation."""
        return self.mask

    def select(self, index: Tensor) -> None:
        """Keep the rows in ``index``, each a coupled block of its own."""
        self.mask, self.half_gradient = self.mask[index], self.half_gradient[index]
        self.active.select(index)
        self.blocks = len(index)


@dataclass(frozen=True)
class ActiveSetSolver(IterativeSolver[ActiveSetState]):
    """Frank-Wolfe variants that store the vertices they combine: a subclass chooses the move.

    One matrix product per iteration, and one pass over the active vertices, which soon costs more: for small and middle
    problems, and as reference. ``active_bytes`` bounds the vertices, one byte an entry.
    """

    active_bytes: int = 2**30

    default_iterations: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if isinstance(self.active_bytes, bool) or not isinstance(self.active_bytes, int) or self.active_bytes < 1:
            raise RelaxPruneError(f"active_bytes must be a positive whole number, got {self.active_bytes!r}")

    def check(self, problem: Problem) -> None:
        """Refuse a coupled block whose first few vertices already exceed ``active_bytes``."""
        height = problem.polytope.rows_per_block(problem.shape)
        needed = _FIRST_SLOTS * height * problem.shape[1]
        if needed > self.active_bytes:
            raise RelaxPruneError(
                f"active_bytes is {self.active_bytes}, but the first {_FIRST_SLOTS} vertices of a coupled block of "
                f"{height} x {problem.shape[1]} take {needed} bytes; raise it, or use dicg, which stores no active set"
            )

    @abstractmethod
    def choose(self, state: ActiveSetState, half_gradient: Tensor, vertex: Tensor) -> Move:
        """Return the move of each block.

        Args:
            state: the state; its active set may take in ``vertex``.
            half_gradient: (blocks, entries).
            vertex: (blocks, entries), the oracle's answer to it.
        """

    def init(self, problem: Working, start: Tensor, plan: Plan) -> ActiveSetState:
        """Start at a feasible mask, the only active vertex."""
        return ActiveSetState(problem, start, plan, self.active_bytes)

    def step(self, problem: Working, state: ActiveSetState) -> None:
        """Search exactly along the chosen move and shift the weights; those that reach 0 leave the set."""
        if state.iteration and state.iteration % _REFRESH_EVERY == 0:
            state.mask = state.active.point().view(state.mask.shape)
            state.half_gradient = problem.half_gradient(state.mask)
            state.product_count += 1
        half = state.half_gradient.view(state.blocks, -1)
        move = self.choose(state, half, problem.polytope.lmo(state.half_gradient).view(state.blocks, -1))
        image = problem.image(move.direction.view(state.mask.shape)).view(state.blocks, -1)
        slope, curvature = torch.linalg.vecdot(half, move.direction), torch.linalg.vecdot(image, move.direction)
        best = torch.where(curvature > 0, -slope / curvature, torch.inf)
        step = torch.where(slope < 0, torch.minimum(best, move.longest), 0.0)
        shift(state.active.weights, move, step)
        state.mask.view(state.blocks, -1).addcmul_(move.direction, step.unsqueeze(1))
        half.addcmul_(image, step.unsqueeze(1))
        state.product_count += 1
        state.iteration += 1

    def done(self, problem: Working, state: ActiveSetState) -> Tensor:
        """Tell which blocks are within the gap tolerance."""
        state.active.trim()
        return within_gap(problem, state.mask, state.half_gradient, state.gap_tolerance)

    def products(self, state: ActiveSetState) -> int:
        """Return one product at the start, one per iteration, one per refresh."""
        return state.product_count


def shift(weights: Tensor, move: Move, step: Tensor) -> None:
    """Move ``weights`` (slots, blocks) by ``step`` (blocks,), in place; a step of full length leaves exact zeros."""
    line = torch.arange(len(step), device=step.device)
    weights *= (1 + move.scale * step).clamp_min(0)
    full = (step >= move.longest) & (step > 0)
    weights[move.up, line] += torch.where(move.scale > 0, 0.0, step)
    left = (weights[move.down, line] - torch.where(move.scale < 0, 0.0, step)).clamp_min(0)
    weights[move.down, line] = torch.where(full & (move.scale >= 0), 0.0, left)
