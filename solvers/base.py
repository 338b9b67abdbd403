"""The solver protocol: what a caller asks, what a solver answers."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from relaxprune.problems import MaskProblem, Problem, RelaxPruneError

from .crew import Crew

CHECK_EVERY = 10  # iterations between looks at the state: the only times the host waits for a device
DEFAULT_MEMORY_BYTES = 2**30
DTYPES = ("float32", "float64")  # the choices of solvers that have one
JUDGED_MATRICES = 5  # held while a mask is rounded and judged
BUDGETS = ("start", "max_iterations", "time_limit_s", "gap_tolerance")  # arguments of ``solve``


class Status(Enum):
    """How a solve ended; the value says what to do about it."""

    OPTIMAL = "Proven, by a closed gap or by a search of all masks: no feasible mask has a lower objective."
    CONVERGED = "The solver met its own stopping rule; relative_gap says how far from the best mask it can be."
    ITERATION_LIMIT = (
        "The iteration budget ended first: raise max_iterations, or read relative_gap and accept the mask."
    )
    TIME_LIMIT = "The time limit ended first: raise time_limit_s, or read relative_gap and accept the mask."
    MEMORY_LIMIT = "The active set filled active_bytes first: raise it, or use dicg, which stores no active set."
    BACKEND_FAILED = "The backend gave no usable answer: try another backend or solver; the start mask is returned."
    NOT_FINITE = "The computation left the finite numbers: solve in float64 (dtype='float64') or look for huge weights."

    @property
    def failed(self) -> bool:
        """Whether the solver broke down somewhere; the mask is the start there, and still feasible."""
        return self in (Status.NOT_FINITE, Status.BACKEND_FAILED)


def block_bytes(problem: Problem, matrices: int) -> int:
    """Return the size of ``matrices`` float64 tensors of one coupled block."""
    return 8 * (matrices + problem.minimised.rank) * problem.polytope.rows_per_block(problem.shape) * problem.shape[1]


def needs_weights(name: str, problem: Problem) -> MaskProblem:
    """Return the problem, which must have a weight and a Gram, and nothing else to minimise.

    Raises:
        RelaxPruneError: another kind of problem, or an objective of several parts.
    """
    if not isinstance(problem, MaskProblem):
        raise RelaxPruneError(
            f"solver {name!r} needs the weight and the Gram matrix of a MaskProblem or ReconstructionProblem, got "
            f"{type(problem).__name__}; use fw or fista, which need neither"
        )
    if not problem.minimised.plain:
        objective = f"{problem.minimised}; use fw or swap, which take it"
        raise RelaxPruneError(f"solver {name!r} needs one Gram for all rows and nothing beside it, got {objective}")
    return problem


def worse(one: Status, other: Status) -> Status:
    """Return the status to report for two bands of rows together."""
    order = list(Status)  # from best to worst
    return max(one, other, key=order.index)


def check_kind(name: str, value: object, example: object) -> None:
    """Raise RelaxPruneError unless ``value`` is a bool, a finite number or a string, as ``example`` is."""
    if isinstance(example, bool):
        good, kind = isinstance(value, bool), "True or False"
    elif isinstance(example, int):
        good, kind = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(example, float):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        kind = "a finite number"
    else:
        good, kind = not isinstance(example, str) or isinstance(value, str), "a string"
    if not good:
        raise RelaxPruneError(f"{name} must be {kind}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a solver's name stands for beyond its masks, for ``prune_model``, where nothing else is asked for.

    Attributes:
        weights: "keep" leaves kept weights, "refit" gives them new values, as in ``PruneOptions.weights``.
        allocation: "layer" counts kept entries over the whole matrix, "uniform" in every row; for a sparsity only.
        damping: share of the mean of the Gram's diagonal that is added to it; None for the default of the run.
        plain: whether the method takes the calibration text as it is: no samples of the model beside it, and Grams that
            are not shrunk.
    """

    weights: str = "keep"
    allocation: str = "uniform"
    damping: float | None = None
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of one band of rows: a callback gets it every ``CHECK_EVERY`` iterations and at the band's end.

    Attributes:
        solver: name of the solver.
        band: number of the band of rows being solved, from 0. A solver that goes over the rows twice, such as ``ils``
            after a descent, counts on.
        bands: number of bands.
        iteration: iterations done in this band; rounds, masks or nodes if the solver counts those.
        products: matrix products done in this band, in matrices of its shape.
        active_blocks: coupled blocks of this band that are not known to have converged; rows if a search moves only
            inside rows.
        seconds: time since the solver started.
    """

    solver: str
    band: int
    bands: int
    iteration: int
    products: float
    active_blocks: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a caller asks of one solve, the same for every solver.

    Attributes:
        start: (rows, cols) bool feasible mask to start from; a relaxed one if only a relaxation is solved.
        max_iterations: None for the solver's own default.
        deadline: ``time.monotonic()`` to stop at, or None.
        gap_tolerance: relative Frank-Wolfe gap at which a convex phase ends, or None.
        seed: for solvers that draw random numbers.
        memory_bytes: bound on temporaries; rows are solved in bands that fit.
        callback: called with a ``Progress`` now and then; it may raise to stop the solve.
        tightening: (cols,) float64, proven by ``Gram.proven_tightening``; None for the Gram's own.
        crew: processes that solve the same problem together, which share its bands of rows; None for this one alone.
    """

    start: Tensor
    max_iterations: int | None = None
    deadline: float | None = None
    gap_tolerance: float | None = None
    seed: int = 0
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    callback: Callable[[Progress], None] | None = None
    tightening: Tensor | None = None
    crew: Crew | None = None

    def expired(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass
class Counts:
    """What a solve cost.

    Attributes:
        iterations: the most iterations any band of rows took.
        products: (rows, cols) @ (cols, cols) products of the whole matrix (a band of rows counts as its fraction).
        swap_rounds, swaps: rounds of swap descent, and the total number of exchanges.
        seconds: wall-clock time of solver and polish together.
    """

    iterations: int = 0
    products: float = 0.0
    swap_rounds: int = 0
    swaps: int = 0
    seconds: float = 0.0

    def add(self, other: Counts, fraction: float = 1.0) -> None:
        """Add the costs of a band, which has this ``fraction`` of all rows."""
        self.iterations = max(self.iterations, other.iterations)
        self.products += other.products * fraction
        self.swap_rounds += other.swap_rounds
        self.swaps += other.swaps

    def to_dict(self) -> dict[str, float]:
        """Return the counts as plain numbers."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass
class Answer:
    """What a solver returns, for all rows or for one band; everything reported is recomputed from it.

    Attributes:
        point: (rows, cols) relaxed mask to round, or a bool mask that is final.
        relaxed: (rows, cols) relaxed mask at the end of a convex phase, or None.
        status: how it ended.
        counts: what it cost.
        tightening: (cols,) float64, what tightened the convex phase, or None.
        weight: (rows, cols), new values of the weights on the mask, found on the way, or None. If weights may move,
            least squares start from them, unless ``own_weights`` makes them final.
    """

    point: Tensor
    relaxed: Tensor | None = None
    status: Status = Status.CONVERGED
    counts: Counts = field(default_factory=Counts)
    tightening: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """A frozen dataclass of options with one method.

    ``name`` is the registry's, ``summary`` one line for listings, ``default_polish`` what ``polish="auto"`` means.
    ``honours`` names those of ``BUDGETS`` that the solver uses; ``solve`` refuses the others. ``polishes`` says that it
    can polish the masks of other solvers: it starts at a mask and never ends at a worse one. ``needs_moving_weights``
    says that it lowers the error after refitting, so it polishes only if weights move. ``published`` says what the
    method does to a model besides choosing masks.

    The rest are promises that the conformance suite checks: ``monotone``, that more iterations never end at a higher
    objective (in float64, without annealing); ``relaxes``, that ``Answer.relaxed`` minimises the problem over its own
    polytope, up to the gap; ``only_images``, that all of the work in ``products`` goes through ``Working.image``, so
    that it can be counted from outside; ``proves``, that its status OPTIMAL rests on a search of all masks. Without the
    last, ``solve`` calls only a closed gap OPTIMAL. ``ordered`` says that the answer depends on the order of the
    columns, ``own_weights`` that ``Answer.weight`` is part of the method, ``couples_rows`` that it takes coupled rows.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    default_polish: ClassVar[str | None] = "swap"
    honours: ClassVar[frozenset[str]] = frozenset()
    polishes: ClassVar[bool] = False
    needs_moving_weights: ClassVar[bool] = False
    monotone: ClassVar[bool] = False
    relaxes: ClassVar[bool] = True
    only_images: ClassVar[bool] = True
    proves: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    own_weights: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False
    published: ClassVar[Published] = Published()

    def __post_init__(self) -> None:
        """Check that every option has the type of its default; solvers with more to check call this first.

        Raises:
            RelaxPruneError: an option is not the number, bool or string that it should be.
        """
        for item in fields(self):
            check_kind(item.name, getattr(self, item.name), item.default)

    @abstractmethod
    def run(self, problem: Problem, run: Run) -> Answer:
        """Solve ``problem`` within the budgets of ``run``, band by band of its rows: see ``Driver``."""

    def check(self, problem: Problem) -> None:
        """Raise RelaxPruneError if the solver cannot take ``problem``: what is missing, and which solvers fit."""
        return None

    def check_device(self, device: torch.device) -> None:
        """Raise RelaxPruneError if the solver, with these options, cannot work on ``device``."""
        return None

    def budgets(self) -> frozenset[str]:
        """Return the names in ``BUDGETS`` that the solver uses with these options."""
        return self.honours

    def least_bytes(self, problem: Problem) -> int:
        """Return the smallest memory budget for this solver's temporaries: those of one coupled block."""
        return block_bytes(problem, JUDGED_MATRICES)

    def bands(self, problem: Problem, run: Run) -> int:
        """Return in how many bands a crew may divide the rows; 1 if it would not pay."""
        return 1

    def planned_iterations(self, max_iterations: int | None) -> int | None:
        """Return how many iterations a band of rows will take, for predictions of time.

        0 if a solve has no iterations but takes about the same time on every layer of a shape; None if that is not
        known.
        """
        return None

    def polisher(self) -> str | None:
        """Return what ``polish="auto"`` means with these options."""
        return self.default_polish

    def distributions(self) -> tuple[str, ...]:
        """Return the installed distributions that do the work with these options, if it is not our own code.

        Their versions help decide a mask, as do those of torch and numpy, which need not be named.
        """
        return ()

    def options(self) -> dict[str, Any]:
        """Return the effective options."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
