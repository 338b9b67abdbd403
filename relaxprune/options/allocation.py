"""How a sparsity for the whole model is shared among its layers: what is asked for, and the resulting counts.

A layer is pruned by the same count p in every row, 0 ≤ p ≤ cols, so it loses rows · p weights. The whole model loses at
most floor(sparsity · weights), and as many of them as whole counts per row allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relaxprune.problems.checks import one_of, positive_number
from relaxprune.problems.errors import RelaxPruneError

ALLOCATIONS = ("uniform", "layer", "owl", "model")
MEASURED = ("owl", "model")  # what a pass over the dense model decides
_REACH = 0.05  # how far a layer's sparsity may exceed the model's if no cap is given
_OUTLIERS = 5.0
_SPREAD = 0.08
_OPTIONS = {"max_sparsity": "model", "outliers": "owl", "spread": "owl"}
_TINY = 1e-12  # of f(0): an error below it counts as none
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """How much of the sparsity asked for each layer, and each row, takes.

    Attributes:
        kind: "uniform": every row of every layer the same share. "layer": every layer the same share, which its rows
            divide among themselves. "owl": blocks with more outliers are pruned less (OWL, arXiv 2310.05175), rows of a
            layer alike. "model": one multiplier for the whole model, so that one more weight pruned costs the same
            error anywhere; rows of a layer alike.
        max_sparsity: for "model", the most that any layer is pruned; None for the sparsity asked for plus 0.05, at most
            1.
        outliers: for "owl", a weight whose Wanda score exceeds this many times the block's mean is an outlier (the
            paper's M, 5 or 7 there); None for 5.
        spread: for "owl", how far a block's sparsity may lie from the mean, with twice this between the least and the
            most pruned (the paper's λ); None for 0.08.
    """

    kind: str = "uniform"
    max_sparsity: float | None = None
    outliers: float | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown kind, and options that it does not use.

        Raises:
            RelaxPruneError: naming the argument.
        """
        one_of("allocation", self.kind, ALLOCATIONS)
        for name, kind in _OPTIONS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if kind != self.kind:
                raise RelaxPruneError(
                    f"{name} is {value!r}, which allocation {self.kind!r} does not use; it is for {kind!r}"
                )
            positive_number(name, value)

    @classmethod
    def of(cls, allocation: str | Allocation) -> Allocation:
        """Return an allocation from its kind, or as it is."""
        return allocation if isinstance(allocation, cls) else cls(str(allocation))

    @property
    def measures(self) -> bool:
        """Whether the layers' shares come from a pass over the dense model."""
        return self.kind in MEASURED

    def check(self, sparsity: float) -> None:
        """Refuse options that do not go with the sparsity of the whole model.

        Raises:
            RelaxPruneError: a cap below it, or a spread that could leave [0, 1].
        """
        if self.kind == "model" and not sparsity <= self.cap(sparsity) <= 1:
            raise RelaxPruneError(
                f"max_sparsity must lie between the sparsity {sparsity} of the whole model and 1, "
                f"got {self.max_sparsity!r}"
            )
        room = min(sparsity, 1 - sparsity) / 2
        if self.kind == "owl" and self.owl[1] > room + 1e-9:
            raise RelaxPruneError(
                f"spread must be at most {room:.4g} at sparsity {sparsity}, so that no layer's leaves [0, 1], "
                f"got {self.owl[1]}"
            )

    def cap(self, sparsity: float) -> float:
        """Return the largest sparsity that a layer may have."""
        return min(1.0, sparsity + _REACH) if self.max_sparsity is None else float(self.max_sparsity)

    @property
    def owl(self) -> tuple[float, float]:
        """OWL's M and λ."""
        return self.outliers or _OUTLIERS, self.spread or _SPREAD

    def to_dict(self) -> dict[str, Any]:
        """Return the options that matter, by name; {} for "uniform"."""
        if self.kind == "uniform":
            return {}
        given = {name: getattr(self, name) for name in _OPTIONS}
        return {"allocation": self.kind, **{name: value for name, value in given.items() if value is not None}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Allocation:
        """Undo ``to_dict``; other keys are passed over."""
        return cls(data.get("allocation", "uniform"), **{name: data[name] for name in _OPTIONS if name in data})


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """What pruning a layer costs, as a function of how much of it is pruned.

    Attributes:
        rows: outputs.
        cols: inputs.
        scale: factor of the relative errors, so that those of different layers can be added.
        sparsities: (levels,) ascending, in (0, 1), at which the error was measured.
        errors: (levels,) relative errors f(mask) / f(0) there.
    """

    rows: int
    cols: int
    scale: float
    sparsities: Sequence[float]
    errors: Sequence[float]

    def costs(self) -> Floats:
        """Return the scaled error of pruning 0, 1, …, cols entries of every row, (cols + 1,), never falling.

        Between the levels, and up to the error 1 of pruning everything, the logarithm of the error is a monotone cubic
        in the logarithm of the sparsity (Fritsch and Carlson, 1980); below the first level it goes on as a power.
        """
        from scipy.interpolate import PchipInterpolator

        if not self.sparsities:
            return self.scale * np.linspace(0.0, 1.0, self.cols + 1)
        at = np.log([*self.sparsities, 1.0])
        errors = np.maximum.accumulate(np.clip([*self.errors, 1.0], _TINY, 1.0))
        curve = PchipInterpolator(at, np.log(errors))
        where = np.log(np.arange(1, self.cols + 1) / self.cols)
        slope = max(float(curve(at[0], 1)), 1.0)
        logs = np.where(where < at[0], np.log(errors[0]) + slope * (where - at[0]), curve(np.maximum(where, at[0])))
        return self.scale * np.concatenate([[0.0], np.maximum.accumulate(np.exp(logs))])


def convex_steps(costs: Floats) -> Floats:
    """Return the increments of the largest convex function below ``costs``: (n + 1,) gives (n,), never falling.

    The sums agree with ``costs`` wherever the two meet, 0 and n included (pool adjacent violators).
    """
    means: list[float] = []
    lengths: list[int] = []
    for step in np.diff(costs):
        mean, length = float(step), 1
        while means and means[-1] > mean:
            before, many = means.pop(), lengths.pop()
            mean, length = (mean * length + before * many) / (length + many), length + many
        means.append(mean)
        lengths.append(length)
    return np.repeat(np.array(means), lengths) if means else np.zeros(0)


def equal_marginal_counts(curves: Mapping[str, ErrorCurve], total: int, cap: float) -> dict[str, int]:
    """Choose how many entries per row each layer loses, to minimise the sum of the scaled errors.

    The cheapest steps per weight are taken first, which is the choice of one Lagrange multiplier: no other has a lower
    sum of convexified errors at the same number of weights. What is left of ``total`` goes to the next steps that fit.

    Args:
        curves: layer -> its error curve.
        total: the most weights to prune, in all layers together.
        cap: the largest sparsity of any layer.

    Returns:
        layer -> entries pruned of every row.
    """
    most = {name: int(curve.cols * cap + 1e-9) for name, curve in curves.items()}
    steps = {name: convex_steps(curve.costs()[: most[name] + 1]) / curve.rows for name, curve in curves.items()}
    names = list(curves)
    owner = np.repeat(np.arange(len(names)), [len(steps[name]) for name in names])
    order = np.argsort(np.concatenate([steps[name] for name in names]), kind="stable")
    owner = owner[order]
    weights = np.array([curves[name].rows for name in names])
    taken = int(np.searchsorted(np.cumsum(weights[owner]), total, side="right"))
    counts = np.bincount(owner[:taken], minlength=len(names))
    left = total - int(counts @ weights)
    closed: set[int] = set()
    for index in owner[taken:].tolist():
        if left < weights.min() or len(closed) == len(names):
            break
        if index in closed or weights[index] > left:
            closed.add(index)  # a layer's steps are taken in their order, or not at all
            continue
        counts[index] += 1
        left -= int(weights[index])
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def rounded_counts(shares: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], total: int) -> dict[str, int]:
    """Round cols · share down in each layer, then up again where the largest fractions are, while ``total`` allows it.

    Args:
        shares: layer -> fraction to prune, in [0, 1].
        shapes: layer -> (rows, cols).
        total: the most weights to prune, in all layers together.

    Returns:
        layer -> entries pruned of every row.
    """
    wanted = {name: share * shapes[name][1] for name, share in shares.items()}
    counts = {name: int(number + 1e-9) for name, number in wanted.items()}
    left = total - sum(shapes[name][0] * count for name, count in counts.items())
    for name in sorted(wanted, key=lambda name: counts[name] - wanted[name]):
        rows, cols = shapes[name]
        if rows <= left and wanted[name] - counts[name] > 1e-9 and counts[name] < cols:
            counts[name] += 1
            left -= rows
    return counts
