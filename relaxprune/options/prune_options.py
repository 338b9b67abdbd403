"""What a user asks of a pruning run: how much to prune, of which layers, with how much effort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from relaxprune.problems import NM, KSparse
from relaxprune.problems.checks import fraction, one_of, whole_number
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.problems.saliency import SALIENCIES

from .allocation import Allocation
from .solve_options import AUTO, SolveOptions
from .statistics_options import StatisticsOptions

CERTIFY_METHODS = ("fw", "diagonal", "sdp")
WEIGHTS = ("keep", "refit")
_DAMPING = 0.03
_SDP_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class PruneOptions(SolveOptions):
    """What one may ask of a pruning run: of every solve as in ``SolveOptions``, per layer, and of the run as a whole.

    A mask is no start here, and a run whose ``time_limit_s`` is reached cannot be repeated to the bit.

    Attributes:
        include: fnmatch patterns on module names; only matching layers are pruned, also ones that are left alone by
            default (output head, layers outside of the blocks). Empty for the default.
        exclude: fnmatch patterns on module names to leave alone.
        certify: method that proves the bound of every layer: "fw", "diagonal" or "sdp", as in ``relaxprune.certify``;
            None leaves it at what the solver proves by itself.
        certify_rows: how many rows of a layer "diagonal" and "sdp" are applied to, drawn with probability proportional
            to their objective; None for all with "diagonal" and 32 with "sdp".
        statistics: which tokens a layer's objective is made of, and how.
        weights: "keep" leaves kept weights as they are; "refit" gives them new values, the least-squares ones, and has
            masks chosen for that.
        damping: of "refit": damping · mean(diag G) · ‖W − V‖² is part of what is minimised, so that weights do not run
            away where there were few tokens. None is 0.03, which held-out text likes best.
        correct: of "refit": what share λ of the errors of earlier layers new weights are to correct. With x the inputs
            in the dense model and x̃ those in the pruned one, they are to give on x̃ what the dense weights give on
            (1 − λ) x̃ + λ x. Above 0 it takes twice the forward passes.
        tune: of "refit": once a block is pruned, tune its kept weights together against the outputs of the dense block,
            for at most this many passes over the batches; 0 for none.
        permute: reorder channels inside the blocks for an N:M pattern, where a block computes the same afterwards.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    certify: str | None = None
    certify_rows: int | None = None
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)
    permute: bool = False
    weights: str = "keep"
    damping: float | None = None
    correct: float = 0.0
    tune: int = 0

    def __post_init__(self) -> None:
        """Refuse values that would only fail once the first layer is solved.

        Raises:
            RelaxPruneError: patterns given as one string, an unknown start, polish or certify, a number out
                of range, or certify_rows where no method takes them.
        """
        super().__post_init__()
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise RelaxPruneError(f"{name} must be a tuple of patterns, got the string {getattr(self, name)!r}")
        self._check_certify()
        self._check_weights()

    def _check_start(self) -> None:
        """Raise RelaxPruneError for a name that no layer knows, and for a mask, which fits one layer at most."""
        start = "a mask" if isinstance(self.start, Tensor) else self.start
        if start is not None:
            one_of("start", start, (AUTO, *SALIENCIES), " or None")

    @property
    def moves(self) -> bool:
        """Whether kept weights get new values."""
        return self.weights == "refit"

    @property
    def ridge(self) -> float:
        """The damping of weights that move."""
        return _DAMPING if self.damping is None else self.damping

    def _check_weights(self) -> None:
        """Raise RelaxPruneError for an unknown choice, or one that certificates do not go with."""
        one_of("weights", self.weights, WEIGHTS)
        self.check_moves(self.moves)
        if self.damping is not None:
            fraction("damping", self.damping)
            if not self.moves:
                raise RelaxPruneError(
                    f'damping is {self.damping}, which weights="keep" does not use; leave it out or set weights to '
                    '"refit"'
                )
        fraction("correct", self.correct)
        whole_number("tune", self.tune, 0)
        beside = f"correct {self.correct}" if self.correct else f"tune {self.tune}" if self.tune else ""
        if beside and (self.permute or not self.moves):
            other = "permute=True, which reorders it" if self.moves else 'weights="keep"'
            raise RelaxPruneError(f"{beside} moves weights towards the dense model, got {other}; leave one of them out")
        if self.moves and self.certify is not None:
            raise RelaxPruneError(
                f"certify is {self.certify!r}, which proves bounds of masks whose weights stay; leave it out with "
                'weights="refit", where every layer has its own bound'
            )

    def _check_certify(self) -> None:
        """Raise RelaxPruneError for an unknown method, or rows that it does not use."""
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


@dataclass(frozen=True)
class Target:
    """What share of each layer to prune: exactly one of the first three is set.

    Attributes:
        sparsity: fraction in [0, 1] to prune: of every row, or as ``allocation`` shares it out.
        pattern: "N:M", keep N of every M consecutive columns.
        polytope: the same feasible set for every layer.
        allocation: how a sparsity is shared among layers and rows.
        counts: layer -> entries to prune of every row, once a pass over the model has decided them; layers that are not
            in it have the sparsity.
    """

    sparsity: float | None = None
    pattern: str | None = None
    polytope: Polytope | None = None
    allocation: Allocation = field(default_factory=Allocation)
    counts: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        """Refuse none or several, and values out of range.

        Raises:
            RelaxPruneError: not exactly one is set, or the one that is set makes no sense.
        """
        given = {name: getattr(self, name) for name in ("sparsity", "pattern", "polytope")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            got = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            raise RelaxPruneError(f"give exactly one of sparsity, pattern and polytope, got {got}")
        if self.sparsity is not None and not 0 <= self.sparsity <= 1:
            raise RelaxPruneError(f"sparsity must be between 0 and 1, got {self.sparsity!r}")
        if self.pattern is not None:
            NM.from_pattern(self.pattern)
        if self.sparsity is not None:
            self.allocation.check(self.sparsity)
        elif self.allocation.kind != "uniform":
            raise RelaxPruneError(
                f"allocation {self.allocation.kind!r} shares out a sparsity, got {', '.join(given)}; leave it out or "
                "give sparsity instead"
            )

    def with_counts(self, counts: Mapping[str, int]) -> Target:
        """Return the same target with the layers' counts decided."""
        return replace(self, counts=counts)

    def polytope_of(self, name: str, shape: tuple[int, int]) -> Polytope:
        """Return the feasible set of one layer.

        Raises:
            RelaxPruneError: the layer's shape does not fit; the message names it.
        """
        try:
            polytope = self._polytope(shape, name)
            polytope.validate(shape)
        except RelaxPruneError as error:
            raise RelaxPruneError(f"layer {name!r} of shape {shape} does not fit: {error}") from error
        return polytope

    def _polytope(self, shape: tuple[int, int], name: str = "") -> Polytope:
        """Return the set for a shape, unchecked."""
        if self.counts is not None and name in self.counts:
            return KSparse(shape[1] - self.counts[name])
        if self.sparsity is not None:
            return KSparse.from_sparsity(self.sparsity, shape, "layer" if self.allocation.kind == "layer" else "row")
        if self.pattern is not None:
            return NM.from_pattern(self.pattern)
        assert self.polytope is not None  # by __post_init__
        return self.polytope

    def requested_sparsity(self, shape: tuple[int, int], name: str = "") -> float:
        """Return the fraction that was asked for, before it is rounded to a count; a decided count is one already."""
        if self.counts is not None and name in self.counts:
            return self.counts[name] / shape[1]
        if self.sparsity is not None:
            return self.sparsity
        return 1 - self._polytope(shape).kept(shape) / (shape[0] * shape[1])

    def to_dict(self) -> dict[str, Any]:
        """Return {"sparsity": S} with an allocation that is not uniform, {"pattern": "N:M"} or {"polytope": …}."""
        if self.sparsity is not None:
            return {"sparsity": self.sparsity, **self.allocation.to_dict()}
        return {"pattern": self.pattern} if self.polytope is None else {"polytope": self.polytope.to_dict()}
