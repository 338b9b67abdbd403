"""What a user asks of a pruning run other than how much to prune: which layers, with how much effort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import NM, MaskProblem, Objective
from relaxprune.problems.checks import fraction, one_of, positive_number, whole_number
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.saliency import SALIENCIES
from relaxprune.solvers import Solver, make_solver

from .objective_options import ObjectiveOptions
from .solve_options import AUTO, SolveOptions
from .statistics_options import MASK_SHRINKAGE, WEIGHT_SHRINKAGE, StatisticsOptions

CERTIFY_METHODS = ("fw", "diagonal", "sdp")
WEIGHTS = ("keep", "refit")
PERMUTE_BY = ("saliency", "error")
TUNE_BY = ("block", "part")
TUNE_RECIPES = ("constant", "tm")
_DAMPING = 0.03
_SDP_ROWS = 32
_REFINE_RATE = 2e-3
RESELECT_SOLVER = "swap"


@dataclass(frozen=True, kw_only=True)
class PruneOptions(SolveOptions):
    """What a caller may ask of a pruning run: of every solve as in ``SolveOptions``, of every layer, and of the run.

    ``start`` cannot be a mask here, and a run that reaches ``time_limit_s`` is not reproducible to the bit.

    Attributes:
        include: fnmatch patterns on module names; only matching layers are pruned, including ones left alone by
            default (output head, layers outside the blocks). Empty for the default.
        exclude: fnmatch patterns on module names to leave alone.
        certify: method that proves the bound of every layer: "fw", "diagonal" or "sdp", as in ``relaxprune.certify``;
            None keeps the bound that the solver proves by itself.
        certify_rows: how many rows of a layer "diagonal" and "sdp" are applied to, drawn with probability proportional
            to their objective; None for all with "diagonal" and 32 with "sdp".
        statistics: which tokens enter a layer's objective, and how.
        objective: what layers minimise beside their Grams' error.
        weights: "keep" leaves kept weights as they are; "refit" gives them new values, the least-squares ones or the
            solver's own, and chooses masks for that. None for what the solver's published method does, see
            ``for_solver``.
        damping: for "refit": adds damping · mean(diag G) · ‖W − V‖² to the objective, so that weights do not run away
            when there are few tokens. None for that of the solver's published method, or 0.03, which is best on
            held-out text.
        correct: for "refit": the share λ of the errors of earlier layers that new weights should correct. With x the
            inputs in the dense model and x̃ those in the pruned one, they should give on x̃ what the dense weights give
            on (1 − λ) x̃ + λ x. Above 0 it takes twice the forward passes.
        tune: once a block is pruned, tune its kept weights together against the outputs of the dense block, for at
            most this many passes over the batches; 0 for none. Also where ``weights`` is "keep".
        tune_by: "block", or "part": its parts, such as attention and MLP, one after the other, each against what it
            puts out itself.
        tune_recipe: how far the steps of ``tune`` move weights: "constant", 0.003 of the root mean square of a layer's
            kept weights; "tm", as block matching was published (3BASiL, NeurIPS 2025: 0.00002 falling along a cosine
            to 0, 20 passes), with masks held.
        refine: once all layers are pruned, move the kept weights of the whole model together towards the dense model's
            predictions, for at most this many passes over the batches and ``refine_batches``; 0 for none. Also where
            ``weights`` is "keep".
        refine_rate: for ``refine``: the highest rate of its steps, as a share of the root mean square of a layer's kept
            weights. None for 0.002.
        reselect: once all layers are pruned, and before ``refine``, choose the masks of all layers again for the whole
            model, by the gradient of its distance from the dense model's predictions, for at most this many rounds; 0
            for none. What does not help on held-out windows is undone.
        reselect_solver: for ``reselect``: name of the solver that chooses them, one that starts from a mask and takes
            an objective with a linear term.
        skip_misfits: leave alone, and list, the layers that do not fit the set of masks or the solver; without it a run
            refuses before any work.
        regrow: for "refit", ``tune`` and ``refine``: give new values to weights that are exactly 0 in a sparse layer
            too. Without it zeros stay zero if they are more than a tenth of a layer.
        permute: reorder channels inside the blocks for an N:M pattern, if the block then computes the same.
        permute_by: what makes an order better: "saliency" that masks keep (RIA, ICLR 2024), or the "error" of a short
            solve in it, which takes several solves of each layer and ends a little lower. None for "saliency".
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    certify: str | None = None
    certify_rows: int | None = None
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    permute: bool = False
    permute_by: str | None = None
    weights: str | None = None
    damping: float | None = None
    correct: float = 0.0
    tune: int = 0
    tune_by: str = "block"
    tune_recipe: str = "constant"
    refine: int = 0
    refine_rate: float | None = None
    reselect: int = 0
    reselect_solver: str = RESELECT_SOLVER
    skip_misfits: bool = False
    regrow: bool = False

    def __post_init__(self) -> None:
        """Refuse values that would otherwise fail only once the first layer is solved.

        Raises:
            RelaxPruneError: a field of another type, an unknown start, polish or certify, a number out of range,
                or certify_rows without a method that uses them.
        """
        super().__post_init__()
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if not isinstance(patterns, (tuple, list)) or not all(isinstance(pattern, str) for pattern in patterns):
                raise RelaxPruneError(f"{name} must be a tuple of patterns, got {patterns!r}")
        if not isinstance(self.statistics, StatisticsOptions):
            raise RelaxPruneError(f"statistics must be StatisticsOptions, got {self.statistics!r}")
        if not isinstance(self.objective, ObjectiveOptions):
            raise RelaxPruneError(f"objective must be ObjectiveOptions, got {self.objective!r}")
        if not isinstance(self.permute, bool):
            raise RelaxPruneError(f"permute must be True or False, got {self.permute!r}")
        if self.permute_by is not None:
            one_of("permute_by", self.permute_by, PERMUTE_BY, " or None")
            if not self.permute:
                raise RelaxPruneError(
                    f"permute_by is {self.permute_by!r}, but permute is False; leave it out or set permute"
                )
        self._check_certify()
        self._check_weights()
        self._check_objective()

    def _check_start(self) -> None:
        """Raise RelaxPruneError for an unknown name, and for a mask, which would fit one layer at most."""
        start = "a mask" if isinstance(self.start, Tensor) else self.start
        if start is not None:
            one_of("start", start, (AUTO, *SALIENCIES), " or None")

    @property
    def moves(self) -> bool:
        """Whether solvers give kept weights new values; False while that is left to the solver."""
        return self.weights == "refit"

    @property
    def new_values(self) -> bool:
        """Whether kept weights get new values, from the solver or after it."""
        return self.block_values or self.refine > 0

    @property
    def block_values(self) -> bool:
        """Whether kept weights get new values while their block is pruned."""
        return self.moves or self.tune > 0

    @property
    def whole_text(self) -> bool:
        """Whether each of the ranks that share a run puts all of the text through the model."""
        return self.tune > 0 or self.objective.active

    @property
    def whole_model(self) -> bool:
        """Whether all layers are changed together once they are pruned, by what the dense model predicts."""
        return self.refine > 0 or self.reselect > 0

    @property
    def refine_share(self) -> float:
        """The rate of ``refine``."""
        return _REFINE_RATE if self.refine_rate is None else self.refine_rate

    @property
    def ridge(self) -> float:
        """The damping of weights that move."""
        return _DAMPING if self.damping is None else self.damping

    def for_solver(self, solver: Solver) -> PruneOptions:
        """Return the options with what was left open as the solver's published method has it.

        That is whether weights move, their damping if they do, and how far Grams are shrunk.

        Raises:
            RelaxPruneError: an option that is not for weights that stay, or that move.
        """
        published = solver.published
        weights = self.weights or published.weights
        damping = self.damping
        if damping is None and weights == "refit":
            damping = _DAMPING if published.damping is None else published.damping
        share = WEIGHT_SHRINKAGE if weights == "refit" else MASK_SHRINKAGE
        shrunk = self.statistics.shrunk(0.0 if published.plain else share)
        by = (self.permute_by or PERMUTE_BY[0]) if self.permute else None
        return replace(self, weights=weights, damping=damping, statistics=shrunk, permute_by=by)

    def _check_weights(self) -> None:
        """Raise RelaxPruneError for an unknown choice, or for options that do not go with it, once it is made."""
        if self.damping is not None:
            fraction("damping", self.damping)
        fraction("correct", self.correct)
        whole_number("tune", self.tune, 0)
        whole_number("refine", self.refine, 0)
        if self.refine_rate is not None:
            positive_number("refine_rate", self.refine_rate)
            if not self.refine:
                raise RelaxPruneError(f"refine_rate is {self.refine_rate}, but refine is 0; leave it out or set refine")
        self._check_reselect()
        self._check_tuning()
        if self.weights is None:
            return
        one_of("weights", self.weights, WEIGHTS, " or None")
        self.check_moves(self.moves)
        if self.damping is not None and not self.moves:
            raise RelaxPruneError(
                f'damping is {self.damping}, which weights="keep" does not use; leave it out or set weights to "refit"'
            )
        if self.correct and not self.moves:
            raise RelaxPruneError(f'correct is {self.correct}, which is for weights="refit"; leave it out or set that')
        beside = f"correct {self.correct}" if self.correct else f"tune {self.tune}" if self.tune else ""
        if beside and self.permute:
            raise RelaxPruneError(
                f"{beside} moves weights towards the dense model, got permute=True, which reorders it; leave one of "
                "them out"
            )
        if self.moves and self.certify is not None:
            raise RelaxPruneError(
                f"certify is {self.certify!r}, which proves bounds of masks whose weights stay; leave it out with "
                'weights="refit", which gives every layer its own bound, or set weights to "keep"'
            )

    def _check_reselect(self) -> None:
        """Raise RelaxPruneError for a solver that cannot choose masks again, or for proofs of masks that will move."""
        whole_number("reselect", self.reselect, 0)
        if self.reselect_solver != RESELECT_SOLVER and not self.reselect:
            raise RelaxPruneError(
                f"reselect_solver is {self.reselect_solver!r}, but reselect is 0; leave it out or set reselect"
            )
        if not self.reselect:
            return
        check_reselecting(self.reselect_solver)
        if self.certify is not None:
            raise RelaxPruneError(
                f"certify is {self.certify!r}, which proves how good masks are, got reselect {self.reselect}, which "
                "chooses others afterwards; leave one of them out"
            )

    def _check_tuning(self) -> None:
        """Raise RelaxPruneError for an unknown way of tuning, or one without tuning."""
        one_of("tune_by", self.tune_by, TUNE_BY)
        one_of("tune_recipe", self.tune_recipe, TUNE_RECIPES)
        given = {"tune_by": self.tune_by != TUNE_BY[0], "tune_recipe": self.tune_recipe != TUNE_RECIPES[0]}
        for name, value in given.items():
            if value and not self.tune:
                raise RelaxPruneError(f"{name} is {getattr(self, name)!r}, but tune is 0; leave it out or set tune")

    def _check_objective(self) -> None:
        """Raise RelaxPruneError for what does not go with an objective of several parts."""
        if not self.objective.active:
            return
        kind = self.objective.kind
        for name, value, why in (
            ("permute", self.permute, "reorders the channels that the gradients were taken for"),
            ("correct", self.correct, "moves weights towards outputs by the Gram alone"),
            ("select", self.statistics.select, "chooses the shrinkage by errors on the Gram alone"),
        ):
            if value:
                raise RelaxPruneError(f"{name} is {value!r}, which {why}: leave it out, or the objective {kind!r}")
        if kind == "coupled" and self.moves and self.objective.share == 1:
            raise RelaxPruneError(
                "strength of the objective 'coupled' must be below 1 for weights that move, got 1: the moment alone "
                "leaves directions in which nothing holds them"
            )
        if kind == "coupled" and self.certify in ("diagonal", "sdp"):
            raise RelaxPruneError(
                f"certify is {self.certify!r}, which looks at one row at a time, but the objective 'coupled' joins "
                'them: take "fw"'
            )

    def _check_certify(self) -> None:
        """Raise RelaxPruneError for an unknown method, or for rows that the method does not use."""
        if self.certify is not None:
            one_of("certify", self.certify, CERTIFY_METHODS, " or None")
        if self.certify_rows is None:
            return
        whole_number("certify_rows", self.certify_rows, 1)
        if self.certify in (None, "fw"):
            raise RelaxPruneError(
                f"certify_rows is {self.certify_rows}, which certify={self.certify!r} does not use; leave it out or "
                "set certify to diagonal or sdp"
            )

    @property
    def rows_to_certify(self) -> int | None:
        """The number of rows that a layer's certificate draws, None for all."""
        return _SDP_ROWS if self.certify == "sdp" and self.certify_rows is None else self.certify_rows


def check_reselecting(name: str) -> None:
    """Raise RelaxPruneError unless a solver starts from a mask and takes an objective with a linear term."""
    solver = make_solver(name)
    if "start" not in solver.budgets():
        raise RelaxPruneError(
            f"reselect_solver must start from a mask, got {name!r}, which has no start: use swap or fw"
        )
    objective = Objective(torch.eye(4), linear=torch.zeros(4, 4))
    try:
        solver.check(MaskProblem(torch.ones(4, 4), objective, NM(2, 4)))
    except RelaxPruneError as error:
        raise RelaxPruneError(f"reselect_solver must take an objective with a linear term: {error}") from error


def new_values(settings: Mapping[str, Any]) -> bool:
    """Return whether a run gives kept weights new values, of the settings that its fingerprint has."""
    return block_values(settings) or bool(settings.get("refine"))


def block_values(settings: Mapping[str, Any]) -> bool:
    """Return whether it does so while their block is pruned."""
    return settings.get("weights") == "refit" or bool(settings.get("tune"))
