"""What is asked of a pruning run, checked as far as possible without the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from relaxprune.costs.memory import TokenCounts
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.solve_options import default_solver, solver_of
from relaxprune.options.target import Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.solvers import Solver, solver_distribution

from .channels.channel_permuter import check_permute
from .layer_certificates import solver_for
from .tuning.block_tuner import check_batches
from .tuning.held_out import check_windows


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """How much of every layer to prune, by which solver, with which options; the three go together.

    Attributes:
        target: how much of each layer.
        solver: finds the masks.
        options: which layers, and with how much effort.
    """

    target: Target
    solver: Solver
    options: PruneOptions = field(default_factory=PruneOptions)

    def __post_init__(self) -> None:
        """Refuse options that the solver ignores or that do not fit the target.

        Raises:
            RelaxPruneError: naming the option.
        """
        if self.options.weights is None or self.target.allocation is None:
            raise RelaxPruneError("weights and allocation must be decided, got None: use PruneRequest.of")
        if self.options.statistics.open:
            raise RelaxPruneError("shrinkage must be decided or selected, got None: use PruneRequest.of")
        self.options.check_for(self.solver)
        check_permute(self.options, self.target)

    @classmethod
    def of(
        cls,
        target: Target,
        solver: str | Solver | None = None,
        options: PruneOptions | None = None,
        solver_options: dict[str, Any] | None = None,
    ) -> PruneRequest:
        """Make a request from the arguments of ``plan_model``; what is left open is what the solver's name means.

        A method that is known for its weights moves them, and counts as it was published (``Solver.published``).
        """
        options, words = PruneOptions.of(options), solver_options or {}
        named = default_solver(options.moves) if solver is None else solver
        chosen = solver_for(options.certify, solver_of(named, words, type(options)), words)
        return cls(target=target.for_solver(chosen), solver=chosen, options=options.for_solver(chosen))

    @property
    def left_out(self) -> list[str]:
        """What the solver's published method does and this run was told not to do."""
        published, found = self.solver.published, []
        if published.weights == "refit" and not self.options.moves:
            found.append("new values for the kept weights (--refit)")
        if (
            published.allocation == "layer"
            and self.target.sparsity is not None
            and self.target.sharing.kind == "uniform"
        ):
            found.append("one count for all rows of a layer (--allocation layer)")
        return found

    @property
    def distributions(self) -> tuple[str, ...]:
        """The installed packages that the solver computes with, and the one that it comes from."""
        owner = solver_distribution(self.solver.name)
        return (*self.solver.distributions(), *(() if owner is None else (owner,)))

    def counted(self, tokens: TokenCounts) -> TokenCounts:
        """Return the tokens of a run, with those that its allocation takes gradients of."""
        return replace(tokens, backward=tokens.at_once if self.target.sharing.kind == "model" else 0)

    def check_batches(self, count: int, windows: int) -> None:
        """Raise RelaxPruneError if ``count`` batches are too few for the Grams, or ``windows`` for a refinement."""
        self.options.statistics.check_for(count)
        check_batches(self.options.tune, count)
        if self.options.whole_model:
            check_windows(windows, "refine" if self.options.refine else "reselect")
