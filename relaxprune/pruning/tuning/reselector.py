"""Choosing masks again by the whole model: its gradient says which kept weights to exchange for which pruned ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relaxprune.inputs.streams import Streams
from relaxprune.models.layers import PrunableLayer
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.solve_options import SolveOptions
from relaxprune.options.statistics_options import MASK_SHRINKAGE
from relaxprune.options.target import Decided
from relaxprune.solvers import Solver, make_solver
from relaxprune.solving.solving import solve

from .gains import ReselectingState, Reselection
from .local_model import LocalModel, local_models
from .whole_model import WholeModel, mean, score

# A layer's curvature leaves out that all layers change at once, and that windows have gradients along which the
# distance bends more than on average.
TRUST, _FACTOR = 16384.0, 4.0
TRIALS = 6  # of a round, with one trust after the other
_SEEDS = 2**20  # of rounds, so far apart that windows have seeds of their own
Listener = Callable[[str, ReselectingState], None]


@dataclass(frozen=True, eq=False)
class Choosing:
    """How the masks of layers are chosen again.

    Attributes:
        decided: the set of masks of each layer.
        solver: finds a mask, from the one at hand.
        options: for each solve.
        streams: which tokens, and so which padding, layers read.
        share: λ, how far Grams are shrunk to their diagonals.
    """

    decided: Decided
    solver: Solver
    options: SolveOptions
    streams: Streams
    share: float

    @classmethod
    def of(cls, options: PruneOptions, decided: Decided, streams: Streams) -> Choosing:
        """Return what a run's options ask for."""
        share = options.statistics.without_selection().shrinkage
        return cls(
            decided=decided,
            solver=make_solver(options.reselect_solver),
            options=SolveOptions(seed=options.seed, memory_budget_bytes=options.memory_budget_bytes),
            streams=streams,
            share=share if isinstance(share, float) else MASK_SHRINKAGE,
        )


@dataclass(frozen=True, eq=False)
class Choice:
    """A layer as it is chosen.

    Attributes:
        mask: (rows, cols) bool on the CPU, True = kept.
        weight: (rows, cols), the values of the kept weights in the model's dtype, 0 elsewhere, on the CPU.
    """

    mask: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class _Trial:
    """Some layers changed: the held-out distances then, and what was changed."""

    found: list[float]
    changes: dict[str, Choice]


class Reselector:
    """Chooses the masks of a pruned model again, in rounds, each from the gradient of where the last one ended.

    In a round the masks of all layers are chosen at once, each for a local model of the whole model's distance from the
    dense predictions (see ``LocalModel``). How far that is trusted is searched: while the held-out distances fall,
    masks may move further; if they do not fall at first, less far. The masks with the least distances stay. If none
    lower them, half of the layers are changed as they were in the last trial, then the others; what does not help is
    put back to the bit. A round in which nothing helps is the last one, and the next begins with the trust that helped.

    Args:
        whole: the pruned model, and the windows.
        choosing: how masks are chosen.
        dense: parameter name -> (rows, cols) in the model's dtype, on the CPU: the weights before they were pruned,
            which are the values of those that are kept anew.
        listen: called with "reselect_start", "reselect_round" or "reselect_done", and how far it is.
    """

    def __init__(self, whole: WholeModel, choosing: Choosing, dense: Mapping[str, Tensor], listen: Listener) -> None:
        self._whole, self._choosing, self._dense, self._listen = whole, choosing, dense, listen
        self._trust = TRUST
        self._layers: dict[str, PrunableLayer] = {}
        self._now: dict[str, Choice] = {}

    def run(
        self, layers: Sequence[PrunableLayer], masks: Mapping[str, Tensor], rounds: int, seed: int
    ) -> tuple[Reselection, dict[str, Tensor]]:
        """Choose the masks of some layers again, and leave the best ones in the model, also after an exception.

        Args:
            layers: the pruned layers.
            masks: parameter name -> (rows, cols) bool, those that they have.
            rounds: the most rounds.
            seed: of what is drawn to see curvatures.

        Returns:
            What was gained, and the masks now.

        Raises:
            RelaxPruneError: the predictions of the pruned model are not finite.
        """
        started, whole = time.perf_counter(), self._whole
        self._layers = {layer.parameter: layer for layer in layers}
        self._now = {name: Choice(masks[name], layer.matrix().cpu().clone()) for name, layer in self._layers.items()}
        start, tuned_before = whole.start("reselect")
        state = ReselectingState(whole.measure, 0, rounds, 0, mean(start), mean(start))
        self._listen("reselect_start", state)
        taken, least = 0, start
        for number in range(1, rounds + 1):
            found = self._round(start, least, seed + number * _SEEDS)
            if found is None:
                break
            taken, least = number, found
            state = replace(state, number=number, moved=sum(self._moved(masks).values()), held_out=mean(least))
            self._listen("reselect_round", state)
        self._listen("reselect_done", state)
        reselection = Reselection(
            measure=whole.measure,
            rounds=taken,
            moved=self._moved(masks),
            tuned_windows=len(whole.sample),
            tuned_before=tuned_before,
            tuned_after=mean(whole.distances(whole.sample)) if taken else tuned_before,
            held_out_windows=len(start),
            held_out_before=mean(start),
            held_out_after=mean(least),
            seconds=time.perf_counter() - started,
        )
        return reselection, {name: choice.mask for name, choice in self._now.items()}

    def _round(self, start: Sequence[float], least: list[float], seed: int) -> list[float] | None:
        """Take a round; return the held-out distances after it, None if nothing lowered them."""
        choosing = self._choosing
        models = local_models(self._whole, [*self._layers.values()], choosing.streams, choosing.share, seed)
        best, last = self._searched(models, least, start)
        if best is not None:
            self._keep(best.changes)
            return best.found
        reached = least
        for part in _halves(last):
            found = self._tried(part)
            if _better(found, reached, start):
                self._keep(part)
                reached = found
        return None if reached is least else reached

    def _searched(
        self, models: Mapping[str, LocalModel], least: Sequence[float], start: Sequence[float]
    ) -> tuple[_Trial | None, dict[str, Choice]]:
        """Search the trust that helps most; return its trial, None if none helps, and the last changes tried."""
        best: _Trial | None = None
        last: dict[str, Choice] = {}
        trust, factor = self._trust, 1 / _FACTOR
        for _ in range(TRIALS):
            changes = self._changes(models, trust)
            if not changes:
                break
            last, found = changes, self._tried(changes)
            if _better(found, least if best is None else best.found, start):
                best, self._trust = _Trial(found, changes), trust
            elif best is None:
                factor = _FACTOR
            else:
                break
            trust *= factor
        return best, last

    def _changes(self, models: Mapping[str, LocalModel], trust: float) -> dict[str, Choice]:
        """Return the layers whose masks change with a trust, as they are then."""
        found, choosing = {}, self._choosing
        for name, model in models.items():
            now, layer = self._now[name], self._layers[name]
            values = self._values(name)
            polytope = choosing.decided.polytope_of(layer.name, layer.shape)
            problem = model.problem(layer.matrix(), values, trust, polytope)
            options = replace(choosing.options, start=now.mask.to(problem.device))
            mask = solve(problem, choosing.solver, options=options, throw=False).mask.cpu()
            if not torch.equal(mask, now.mask):
                found[name] = Choice(mask, torch.where(mask, values.cpu(), 0.0))
        return found

    def _values(self, name: str) -> Tensor:
        """Return what the weights of a layer are where they are kept: as they are, or else as they were when dense.

        (rows, cols) in the layer's dtype and on its device.
        """
        own = self._layers[name].matrix()
        return torch.where(self._now[name].mask.to(own.device), own, self._dense[name].to(own.device))

    def _tried(self, changes: Mapping[str, Choice]) -> list[float]:
        """Return the held-out distances with some layers changed, which are then as they were."""
        try:
            self._write(changes)
            return self._whole.distances(self._whole.held_out)
        finally:
            self._write({name: self._now[name] for name in changes})

    def _keep(self, changes: Mapping[str, Choice]) -> None:
        """Change layers for good."""
        self._now |= changes
        self._write(changes)

    def _write(self, choices: Mapping[str, Choice]) -> None:
        """Write layers into the model."""
        for name, choice in choices.items():
            self._layers[name].write(choice.mask, choice.weight)

    def _moved(self, masks: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many weights of each layer are kept now and were not before, of layers with any."""
        found = {name: int((choice.mask & ~masks[name]).sum()) for name, choice in self._now.items()}
        return {name: count for name, count in found.items() if count}


def _better(found: Sequence[float], than: Sequence[float], start: Sequence[float]) -> bool:
    """Return whether distances are lower than others in the mean of their ratios to the start, and in their mean."""
    return score(found, start) < score(than, start) and mean(found) < mean(than)


def _halves(changes: Mapping[str, Choice]) -> Iterator[dict[str, Choice]]:
    """Yield the first half of some layers, in the order of the model, and the second."""
    names = list(changes)
    middle = len(names) // 2
    yield from ({name: changes[name] for name in some} for some in (names[:middle], names[middle:]) if some)
