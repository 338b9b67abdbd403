"""Everything that ``relaxprune prune`` was asked for, and what of it can be checked without the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relaxprune.options.prune_options import PruneOptions, Target
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.block_tuning import check_batches
from relaxprune.pruning.channels.channel_permuter import check_permute
from relaxprune.pruning.layer_certificates import solver_for
from relaxprune.solvers import Solver, make_solver, solver_distribution
from relaxprune.text.windows import CalibrationOptions, open_source

from .endings import door
from .loading import load_options
from .option_groups import (
    AllocationGroup,
    CalibrationGroup,
    CertifyGroup,
    LayerGroup,
    ModelGroup,
    PatternGroup,
    RunGroup,
    SolverGroup,
    StatisticsGroup,
)
from .solver_options import parse_options

# Windows go through the model in batches of about this many tokens; part of the fingerprint, for sums depend on it.
_BATCH_TOKENS = 2048


def windows_at_once(length: int) -> int:
    """Return how many windows of some tokens go through the model at once."""
    return max(1, _BATCH_TOKENS // length)


@dataclass(frozen=True)
class PruneRequest:
    """Everything that ``relaxprune prune`` was asked for."""

    model: str
    how_much: PatternGroup
    how: SolverGroup
    calibration: CalibrationGroup
    layers: LayerGroup
    loading: ModelGroup
    run: RunGroup
    certify: CertifyGroup = field(default_factory=CertifyGroup)
    statistics: StatisticsGroup = field(default_factory=StatisticsGroup)
    sharing: AllocationGroup = field(default_factory=AllocationGroup)

    @property
    def out(self) -> Path:
        """The output folder."""
        if self.run.out is None:
            raise RelaxPruneError("give --out FOLDER for the pruned model, or --plan to see what would be pruned")
        return self.run.out

    @property
    def amount(self) -> dict[str, Any]:
        """``sparsity`` and ``pattern``, one of them None, and ``allocation``, as ``prune_model`` takes them."""
        target = self.how_much.target
        return {"sparsity": target.sparsity, "pattern": target.pattern, "allocation": self.sharing.value}

    @property
    def target(self) -> Target:
        """How much is pruned, and how it is shared, checked."""
        return Target(**self.amount)

    @property
    def solver_name(self) -> str:
        """The solver's name, or that of the default one."""
        return self.how.named(self.layers.refit)

    @property
    def solver_options(self) -> dict[str, Any]:
        """The solver's own options that were given, parsed and checked."""
        return parse_options(self.solver_name, self.how.words)

    @property
    def solver(self) -> Solver:
        """The solver as ``prune_model`` takes it from its name and options."""
        given = self.solver_options
        return solver_for(self.certify.certify, make_solver(self.solver_name, **given), given)

    @property
    def distributions(self) -> tuple[str, ...]:
        """The installed packages that the solver depends on: what it computes with, and what it comes in."""
        owner = solver_distribution(self.solver_name)
        return (*self.solver.distributions(), *(() if owner is None else (owner,)))

    @property
    def polish(self) -> str | None:
        """The polish's name or None, with ``auto`` resolved to what the solver wants, so that it is recorded."""
        return self.solver.polisher() if self.how.polish == "auto" else self.how.options(self.run.seed).polish

    @property
    def windows(self) -> CalibrationOptions:
        """Which calibration windows to take."""
        group = self.calibration
        return CalibrationOptions(windows=group.windows, length=group.length, seed=self.run.seed)

    @property
    def options(self) -> PruneOptions:
        """The options of ``prune_model``."""
        return PruneOptions(
            **vars(replace(self.how.options(self.run.seed), polish=self.polish)),
            include=tuple(self.layers.include),
            exclude=tuple(self.layers.exclude),
            certify=self.certify.certify,
            certify_rows=self.certify.certify_rows,
            statistics=self.statistics.options,
            permute=self.layers.permute,
            weights="refit" if self.layers.refit else "keep",
            damping=self.layers.damping,
            correct=self.layers.correct,
            tune=self.layers.tune,
        )

    def check(self) -> None:
        """Refuse everything that can be refused without the model.

        Raises:
            RelaxPruneError: naming the option.
        """
        check_permute(self.options, self.target)
        _ = self.windows, load_options(self.loading)
        batches = -(-self.calibration.windows // windows_at_once(self.calibration.length))
        self.statistics.options.check_for(batches)
        check_batches(self.layers.tune, batches)
        self.options.check_for(self.solver)
        with door():
            open_source(self.calibration.calibration, "calibration")
