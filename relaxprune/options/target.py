"""How much of each layer to prune: what is asked for, and what is decided once the layers are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from relaxprune.problems import NM, Hybrid, KSparse, polytope_from_dict
from relaxprune.problems.checks import fraction
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.solvers import Solver

from .allocation import Allocation

Shape = tuple[int, int]


@dataclass(frozen=True)
class Target:
    """How much of each layer to prune: exactly one of the first three is set.

    Attributes:
        sparsity: fraction in [0, 1] to prune: of every row, or as ``allocation`` divides it.
        pattern: "N:M", keep N of every M consecutive columns; "N:M,dense=0.25,tile=64" leaves a quarter of the tiles of
            64 rows dense, those where it helps most (1 row each without ``tile``).
        polytope: the same feasible set for every layer.
        allocation: how a sparsity is shared among layers and rows; None for the solver's own way, see ``for_solver``.
    """

    sparsity: float | None = None
    pattern: str | None = None
    polytope: Polytope | None = None
    allocation: Allocation | None = None

    def __post_init__(self) -> None:
        """Refuse none or several of the three, and values out of range.

        Raises:
            RelaxPruneError: not exactly one is set, or its value is wrong.
        """
        given = {name: getattr(self, name) for name in ("sparsity", "pattern", "polytope")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            got = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            raise RelaxPruneError(f"give exactly one of sparsity, pattern and polytope, got {got}")
        if self.sparsity is not None:
            fraction("sparsity", self.sparsity)
        if self.polytope is not None and not isinstance(self.polytope, Polytope):
            raise RelaxPruneError(
                f"polytope must be a Polytope such as KSparse or NM, got {type(self.polytope).__name__}"
            )
        if self.pattern is not None:
            _check_pattern(self.pattern)
        if self.sparsity is not None:
            self.sharing.check(self.sparsity)
        elif self.sharing.kind != "uniform":
            raise RelaxPruneError(
                f"allocation {self.sharing.kind!r} divides a sparsity, got {', '.join(given)}; leave it out or "
                "give sparsity instead"
            )

    @property
    def sharing(self) -> Allocation:
        """The allocation, uniform if none is given."""
        return Allocation() if self.allocation is None else self.allocation

    def for_solver(self, solver: Solver) -> Target:
        """Return the target with an allocation: that of the solver's published method where none was given."""
        if self.allocation is not None:
            return self
        kind = "uniform" if self.sparsity is None else solver.published.allocation
        return replace(self, allocation=Allocation(kind))

    @property
    def words(self) -> str:
        """The target as it is asked for, without its allocation."""
        return self.pattern or (f"sparsity {self.sparsity:g}" if self.polytope is None else repr(self.polytope))

    def fits(self, shape: Shape) -> bool:
        """Return whether a layer of that shape has masks in the set."""
        try:
            self.polytope_of("", shape)
        except RelaxPruneError:
            return False
        return True

    def polytope_of(self, name: str, shape: Shape) -> Polytope:
        """Return the feasible set of one layer, unless a pass over the model divides the sparsity.

        Raises:
            RelaxPruneError: the layer's shape does not fit; the message names it.
        """
        return _fitting(partial(self._polytope, shape), name, shape)

    def _polytope(self, shape: Shape) -> Polytope:
        """Return the set for a shape, unchecked."""
        if self.sparsity is not None:
            return KSparse.from_sparsity(self.sparsity, shape, "layer" if self.sharing.kind == "layer" else "row")
        if self.pattern is not None:
            return (
                Hybrid.from_pattern(self.pattern, shape) if _is_hybrid(self.pattern) else NM.from_pattern(self.pattern)
            )
        assert self.polytope is not None  # by __post_init__
        return self.polytope

    def fraction(self, shape: Shape) -> float:
        """Return the fraction of a layer to prune, before it is rounded to a count."""
        if self.sparsity is not None:
            return self.sparsity
        return 1 - self._polytope(shape).kept(shape) / (shape[0] * shape[1])

    def lacks_dense(self, shape: Shape) -> bool:
        """Return whether the pattern asks for a share of dense tiles that is less than one tile of such a weight."""
        if self.pattern is None or not _is_hybrid(self.pattern):
            return False
        return Hybrid.parsed(self.pattern)[1] > 0 and Hybrid.from_pattern(self.pattern, shape).dense == 0

    @property
    def apart(self) -> Target:
        """The target over which rows are solved: N:M for a set that leaves rows dense, else the target itself."""
        if self.pattern is not None and _is_hybrid(self.pattern):
            return Target(pattern=Hybrid.parsed(self.pattern)[0])
        over = None if self.polytope is None else self.polytope.chosen_from()
        return self if over is None else Target(polytope=over)

    @property
    def n_of_m(self) -> NM | None:
        """The N:M set that is asked for, or None for a set of another kind."""
        if self.pattern is not None:
            return None if _is_hybrid(self.pattern) else NM.from_pattern(self.pattern)
        return self.polytope if isinstance(self.polytope, NM) else None

    def to_dict(self) -> dict[str, Any]:
        """Return {"sparsity": S} with an allocation that is not uniform, {"pattern": …} or {"polytope": …}."""
        if self.sparsity is not None:
            return {"sparsity": self.sparsity, **self.sharing.to_dict()}
        return {"pattern": self.pattern} if self.polytope is None else {"polytope": self.polytope.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Target:
        """Undo ``to_dict``.

        Raises:
            RelaxPruneError: it is no such description.
        """
        if "polytope" in data:
            return cls(polytope=polytope_from_dict(data["polytope"]))
        sharing = Allocation.from_dict(data) if "allocation" in data else None  # what is uniform is not written
        return cls(data.get("sparsity"), data.get("pattern"), allocation=sharing)


def _is_hybrid(pattern: str) -> bool:
    """Return whether a pattern leaves tiles of rows dense, or tries to say so."""
    return isinstance(pattern, str) and ("," in pattern or "=" in pattern)


def _check_pattern(pattern: str) -> None:
    """Raise RelaxPruneError for a pattern that is none."""
    if _is_hybrid(pattern):
        Hybrid.parsed(pattern)
    else:
        NM.from_pattern(pattern)


@dataclass(frozen=True)
class Decided:
    """What was decided for a target: the set of masks of every layer.

    Attributes:
        target: what was asked for.
        counts: layer -> entries to prune of every row, if a pass over the model has divided the sparsity. Other layers
            get what the target asks for.
    """

    target: Target
    counts: Mapping[str, int] = field(default_factory=dict)

    def polytope_of(self, name: str, shape: Shape) -> Polytope:
        """Return the feasible set of one layer; raises as ``Target.polytope_of`` does."""
        if name in self.counts:
            return _fitting(lambda: KSparse(shape[1] - self.counts[name]), name, shape)
        return self.target.polytope_of(name, shape)

    def fraction(self, name: str, shape: Shape) -> float:
        """Return the fraction of a layer to prune: from its count, or as asked for, before it is rounded to one."""
        return self.counts[name] / shape[1] if name in self.counts else self.target.fraction(shape)


def _fitting(make: Callable[[], Polytope], name: str, shape: Shape) -> Polytope:
    """Return the set of a layer's masks, or raise RelaxPruneError with the layer's name."""
    try:
        polytope = make()
        polytope.validate(shape)
    except RelaxPruneError as error:
        raise RelaxPruneError(f"layer {name!r} of shape {shape} does not fit: {error}") from error
    return polytope
