"""What enters a layer's objective: which tokens count, how much, when they are gathered, how far G is shrunk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from relaxprune.problems.checks import fraction, one_of, positive_number, whole_number
from relaxprune.problems.errors import RelaxPruneError

COLLECT = ("block", "groups")
AUTO = "auto"
# Best on text that was not seen, of the same kind and of others (docs/unseen-text.md); new weights are damped as well.
MASK_SHRINKAGE, WEIGHT_SHRINKAGE = 0.2, 0.1


@dataclass(frozen=True)
class StatisticsOptions:
    """How the Grams of a pruning run are computed.

    With weights a_t of the tokens x_t, G = Σ a_t x_t x_tᵀ / Σ a_t, and the Gram of the problem that is solved, judged
    and certified is G(λ) = (1 − λ) G + λ Diag(G).

    Attributes:
        collect: "block" gathers the inputs of all layers of a block in one pass, before any of them is pruned; "groups"
            gathers again for every group of layers that reads one tensor, in the order of execution, so that their
            inputs come through the pruned groups before them. That takes one pass through the block per group.
        skip_tokens: tokens at the start of every window that do not count (a = 0), not including padding. They still go
            through the model.
        token_cap: a_t = min(1, token_cap · median ‖x‖² / ‖x_t‖²), so that no token weighs more than that many typical
            ones; the median is over the tokens of the layer that count and are not zero. None for a = 1. Takes one more
            pass.
        shrinkage: λ in [0, 1], or "auto", which estimates it for every Gram (see ``shrinkage.estimate``). None for 0.2
            if weights stay, 0.1 if they move, and 0 for methods that were published so.
        select: candidates for λ, at least two different ones. Each Gram takes the one whose solutions are best on text
            that was held out of it, of the same kinds and, if windows are of several, of other kinds. Empty for
            ``shrinkage``.
    """

    collect: str = "block"
    skip_tokens: int = 0
    token_cap: float | None = None
    shrinkage: float | str | None = None
    select: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            RelaxPruneError: naming the option.
        """
        one_of("collect", self.collect, COLLECT)
        whole_number("skip_tokens", self.skip_tokens, 0)
        if self.token_cap is not None:
            positive_number("token_cap", self.token_cap)
        if self.shrinkage is not None and self.shrinkage != AUTO:
            fraction("shrinkage", self.shrinkage, ' or be "auto"')
        self._check_select()

    def _check_select(self) -> None:
        """Raise RelaxPruneError unless there are no candidates, or some to choose among."""
        if not isinstance(self.select, (tuple, list)):
            raise RelaxPruneError(f"select must be a tuple of numbers, got {self.select!r}")
        object.__setattr__(self, "select", tuple(self.select))  # a list, as JSON has it, is taken too
        for share in self.select:
            fraction("select", share)
        if self.select and len({*self.select}) < max(2, len(self.select)):
            given = ", ".join(f"{share:g}" for share in self.select)
            raise RelaxPruneError(f"select must have at least 2 candidates, all different, got {given}")
        if self.select and self.shrinkage is not None:
            raise RelaxPruneError(
                f"shrinkage is {self.shrinkage!r}, but select chooses it among {len(self.select)} candidates; leave "
                "one of them out"
            )

    @property
    def open(self) -> bool:
        """Whether the shrinkage is yet to be decided: none was given, and none is selected."""
        return self.shrinkage is None and not self.select

    def shrunk(self, share: float) -> StatisticsOptions:
        """Return options with this shrinkage if none was given and none is selected."""
        return replace(self, shrinkage=share) if self.open else self

    def without_selection(self) -> StatisticsOptions:
        """Return options that take the middle candidate instead of selecting one."""
        middle = sorted(self.select)[len(self.select) // 2] if self.select else self.shrinkage
        return replace(self, select=(), shrinkage=middle)

    def check_for(self, batches: int) -> None:
        """Raise RelaxPruneError if there are too few batches to estimate the shrinkage from, or to hold some out."""
        if batches < 2 and self.shrinkage == AUTO:
            raise RelaxPruneError(
                f'shrinkage "auto" compares even with odd batches and needs at least 2, got {batches}; give smaller '
                "batches or a number"
            )
        if batches < 2 and self.select:
            raise RelaxPruneError(
                f"select holds out batches and needs at least 2, got {batches}; give more or smaller batches, or "
                "shrinkage"
            )
