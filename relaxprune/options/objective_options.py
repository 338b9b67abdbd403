"""What a layer's objective has beside its Gram: what the gradient of the model's loss says of errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from relaxprune.problems.checks import fraction, number, one_of, whole_number
from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True)
class _Kind:
    """The defaults of a kind, and its range; None for what it does not use."""

    strength: float
    most: float
    cap: float | None = None
    groups: int | None = None


GRAM = "gram"
_KINDS = {
    GRAM: _Kind(0.0, 0.0),
    "rows": _Kind(0.5, 2.0, cap=0.99, groups=4),
    "fisher": _Kind(1.0, math.inf, groups=16),
    "coupled": _Kind(0.5, 1.0),
}
OBJECTIVES = tuple(_KINDS)
_READ_BY = {
    "cap": "the largest weights of tokens, which rows alone has",
    "groups": "groups of rows or lines of F, which rows and fisher have",
}


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the layers of a pruning run minimise; see docs/objectives.md.

    All kinds but "gram" take the gradient y of the model's loss, of the text's own next tokens, at the outputs of each
    layer of the dense model.

    Attributes:
        kind: "gram", the mean squared change of the outputs, alone; "rows", groups of consecutive rows whose Grams
            weigh a token by the mean of y² over the group's outputs; "fisher", each row's gradient on single windows as
            a low-rank term beside the Gram; "coupled", the second moment of y in the place of the identity.
        strength: how much the gradient counts, 0 for not at all, which is "gram". Of "rows" the power of a token's
            weight (up to 2); of "fisher" the term's diagonal energy over the Gram's; of "coupled" the share of the
            second moment, the rest is the identity (up to 1). None for 0.5, 1 and 0.5.
        cap: of "rows": the quantile of a group's weights above which tokens weigh no more. None for 0.99.
        groups: of "rows" how many groups of rows a layer has, 4 for None; of "fisher" the rank of each row's term, 16
            for None: with more windows, those of a line enter it with random signs.
    """

    kind: str = GRAM
    strength: float | None = None
    cap: float | None = None
    groups: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, and fill in what was left open.

        Raises:
            RelaxPruneError: naming the option.
        """
        one_of("objective", self.kind, OBJECTIVES)
        known = _KINDS[self.kind]
        if self.kind == GRAM and self.strength:
            raise RelaxPruneError(
                f"strength is {self.strength}, which the objective {GRAM!r} does not use; leave it out or set kind to "
                f"{', '.join(OBJECTIVES[1:])}"
            )
        for name, meaning in _READ_BY.items():
            if getattr(self, name) is not None and getattr(known, name) is None:
                raise RelaxPruneError(
                    f"{name} is {getattr(self, name)}, but the objective {self.kind!r} has none: it bounds or counts "
                    f"{meaning}; leave it out"
                )
        for name in ("strength", *_READ_BY):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(known, name))
        self._check_range(known.most)

    def _check_range(self, most: float) -> None:
        """Raise RelaxPruneError for a number out of range."""
        number("strength", self.strength, 0)
        if self.strength is not None and self.strength > most:
            raise RelaxPruneError(
                f"strength of the objective {self.kind!r} must be at most {most:g}, got {self.strength:g}"
            )
        if self.cap is not None:
            fraction("cap", self.cap)
        if self.groups is not None:
            whole_number("groups", self.groups, 1)

    @property
    def share(self) -> float:
        """The strength as a number."""
        return self.strength or 0.0

    @property
    def count(self) -> int:
        """The number of groups, 1 for a kind without any."""
        return self.groups or 1

    @property
    def grams(self) -> int:
        """How many Grams of its own a layer has, one for each group of rows; 0 for a kind that takes one for all."""
        return self.count if self.active and self.kind == "rows" else 0

    @property
    def active(self) -> bool:
        """Whether gradients are taken."""
        return self.kind != GRAM and self.share > 0
