"""What a caller may ask of a solve, whatever the solver: one value, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Self

from torch import Tensor

from relaxprune.problems import MaskProblem, Problem, QuadraticProblem
from relaxprune.problems.checks import check_seed, one_of, positive_number, whole_number
from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.solvers import Solver, make_solver, polish_names, polishes, solver_class
from relaxprune.solvers.base import BUDGETS, DEFAULT_MEMORY_BYTES

AUTO = "auto"


def _budget(check: Callable[[str, object], None]) -> Any:
    """Return a field that is None by default; any other value is checked by ``check(name, value)``."""
    return field(default=None, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """What a caller may ask of a solve; the fields are arguments of ``solve``.

    Attributes:
        start: mask that the solver starts from: ``"wanda"``, ``"ria"``, ``"magnitude"``, a feasible (rows, cols) bool
            mask, or None (the first columns). ``"auto"`` is the problem's own: ``"wanda"``, and ``"savings"`` for a
            ``QuadraticProblem``.
        polish: ``"swap"`` descends to a 1-swap optimum after rounding; None leaves the rounded mask; ``"auto"`` is swap
            for solvers of the relaxation and None for one-shot masks and published methods. If weights may move,
            ``"obs-swap"`` exchanges by the error after refitting.
        max_iterations: iterations of both phases together; None for the solver's default.
        time_limit_s: seconds for solver and polish together, checked every 10 iterations; preparation, judging and the
            certificate come on top.
        gap_tolerance: relative Frank-Wolfe gap that ends the convex phase.
        seed: for solvers that draw random numbers.
        memory_budget_bytes: bound on temporaries, at least ``least_memory``; rows are solved and judged in bands that
            fit. None for 1 GiB. The problem, the mask and the relaxed masks in the solver's dtype, each of the size of
            the weight, come on top; so do up to 256 MiB for f(0), once per problem; and (cols, cols) matrices in
            float64: two to prove the curvature of a Gram, then a copy of it if it is not in the dtype computed in (the
            polish's is float64), and four for ``admm``, plus the factors that it keeps between bands (the budget's
            size, or 64 MiB).

    Raises:
        RelaxPruneError: an unknown start or polish, or a number out of range.
    """

    start: str | Tensor | None = AUTO
    polish: str | None = AUTO
    max_iterations: int | None = _budget(partial(whole_number, low=1))
    time_limit_s: float | None = _budget(positive_number)
    gap_tolerance: float | None = _budget(positive_number)
    seed: int = 0
    memory_budget_bytes: int | None = _budget(positive_number)

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_start()
        if self.polish not in (AUTO, None) and not polishes(self.polish):
            one_of("polish", self.polish, (AUTO, *polish_names()), " or None")
        check_seed(self.seed)
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and "check" in item.metadata:
                item.metadata["check"](item.name, value)

    def _check_start(self) -> None:
        """Raise RelaxPruneError for an unknown name; a mask is checked once there is a problem."""
        if self.start is not None and not isinstance(self.start, Tensor):
            known = (AUTO, *MaskProblem.saliencies, *QuadraticProblem.saliencies)
            one_of("start", self.start, known, ", a mask or None")

    @classmethod
    def of(cls, options: Self | None) -> Self:
        """Return ``options``, the defaults for None; raise RelaxPruneError for anything else."""
        if options is not None and not isinstance(options, cls):
            raise RelaxPruneError(f"options must be {cls.__name__}, got {type(options).__name__}")
        return cls() if options is None else options

    def updated(self, words: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Return options updated by the ``words`` that are fields, and the other words: a solver's own options."""
        own = {item.name for item in fields(self)}
        taken = {name: value for name, value in words.items() if name in own}
        return replace(self, **taken), {name: value for name, value in words.items() if name not in own}

    @property
    def memory_bytes(self) -> int:
        """The bound on temporaries in bytes."""
        return self.memory_budget_bytes or DEFAULT_MEMORY_BYTES

    def polisher(self, solver: Solver) -> Solver | None:
        """Return the solver that polishes after rounding, or None."""
        name = solver.polisher() if self.polish == AUTO else self.polish
        return None if name is None or solver.name == name else make_solver(name)

    def check_for(self, solver: Solver) -> None:
        """Raise RelaxPruneError for a budget or start that ``solver`` does not use; a polish uses the time limit."""
        honoured = solver.budgets() | ({"time_limit_s"} if self.polisher(solver) is not None else set())
        for name in self.given():
            if name not in honoured:
                value = getattr(self, name)
                what = "a mask" if isinstance(value, Tensor) else repr(value)
                taken = ", ".join(budget for budget in BUDGETS if budget in honoured) or "none"
                raise RelaxPruneError(
                    f"{name} is {what}, which solver {solver.name!r} does not use; leave it out "
                    f"(of {', '.join(BUDGETS)} it uses {taken})"
                )

    def given(self) -> list[str]:
        """Return the names in ``BUDGETS`` that are not at their defaults."""
        defaults = {item.name: item.default for item in fields(self)}
        # A tensor has no single truth value to compare by, and is never the default.
        values = {name: getattr(self, name) for name in BUDGETS}
        return [name for name, value in values.items() if isinstance(value, Tensor) or value != defaults[name]]

    def check_moves(self, moves_weights: bool) -> None:
        """Raise RelaxPruneError for a polish that judges by the error after refitting if weights stay."""
        if moves_weights or self.polish is None or self.polish == AUTO:
            return
        if solver_class(self.polish).needs_moving_weights:
            raise RelaxPruneError(
                f'polish "{self.polish}" is for weights that move: use a ReconstructionProblem, or weights="refit" for '
                'a model, or polish "swap"'
            )

    def check_memory(self, problem: Problem, solver: Solver) -> None:
        """Raise RelaxPruneError for a memory budget in which one coupled block does not fit; None always passes."""
        least, name = self.least_memory(problem, solver)
        if self.memory_budget_bytes is not None and self.memory_budget_bytes < least:
            raise RelaxPruneError(
                f"memory_budget_bytes is {self.memory_budget_bytes}, but {name!r} needs at least {least} for one "
                f"coupled block in a problem of shape {problem.shape}"
            )

    def least_memory(self, problem: Problem, solver: Solver) -> tuple[int, str]:
        """Return the smallest memory budget for solver and polish, and the name of the one that needs it."""
        polisher = self.polisher(solver)
        return max((one.least_bytes(problem), one.name) for one in (solver, polisher) if one is not None)


def default_solver(moves_weights: bool) -> str:
    """Return the name of the default solver."""
    return "reconstruct" if moves_weights else "fw"


def solver_of(solver: str | Solver, own: Mapping[str, Any], asked: type[SolveOptions] = SolveOptions) -> Solver:
    """Return a solver from its name and own options, or the instance given.

    Args:
        solver: a name or an instance.
        own: words that are meant for the solver.
        asked: the class of the options that are given as ``options``.

    Raises:
        RelaxPruneError: an unknown name or word, with the closest known one, or options with an instance.
    """
    options = [item.name for item in fields(solver_class(solver))] if isinstance(solver, str) else []
    known = [item.name for item in fields(asked)]
    for word in own:
        if word in known and word not in options:
            raise RelaxPruneError(f"{word} is one of {asked.__name__}: give options={asked.__name__}({word}=…)")
        guess = did_you_mean(word, known)
        if guess and not did_you_mean(word, options):
            raise RelaxPruneError(f"{word!r} is neither an argument nor an option of the solver{guess}")
    return make_solver(solver, **own)
