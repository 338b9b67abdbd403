"""certify(): prove how far a mask, from anywhere, can be from the best one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from relaxprune.problems import Problem, RelaxPruneError
from relaxprune.problems.checks import check_seed, one_of, positive_number, whole_number
from relaxprune.problems.precision import UNIT_ROUNDOFF
from relaxprune.solvers import Run, make_solver
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

from .certificate import Certificate
from .choice_certificate import choice_certificate, rows_apart
from .combining import Candidate, best_of
from .limits import check_enumerable, check_limits
from .mask_certificate import Estimate, MaskCertificate, assemble
from .row_sampling import chosen_rows, extrapolated, row_count
from .sdp.row_bound import DenseRow, dense_rows, least_bytes
from .underestimator import MATRICES, Bound, plain_proof, tangent_bound
from .verify.claim import METHODS, TangentProof

_ITERATIONS = 200
_ENUMERATED_SLACK = 4


@runtime_checkable
class Solved(Protocol):
    """What a solver found, such as a ``Solution``."""

    @property
    def mask(self) -> Tensor:
        """(rows, cols) bool, feasible."""

    @property
    def relaxed_mask(self) -> Tensor | None:
        """A relaxed mask (rows, cols) that serves as a hint, or None."""

    @property
    def certificate(self) -> Certificate:
        """Its tightening serves as a hint for that relaxed mask."""


@dataclass(frozen=True, eq=False)
class _Task:
    """A problem, a mask with its objectives, the rows to treat, and the budgets."""

    problem: Problem
    mask: Tensor
    block_objective: Tensor
    rows: Tensor | None
    iterations: int
    memory_bytes: int
    deadline: float | None


def certify(
    problem: Problem,
    mask: Tensor | Solved,
    method: str = "fw",
    *,
    rows: int | Sequence[int] | Tensor | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
    max_iterations: int = _ITERATIONS,
    memory_budget_bytes: int = DEFAULT_MEMORY_BYTES,
) -> MaskCertificate:
    """Prove how far a mask, from anywhere, can be from the best one.

    Every method also tries the cheaper ones (``exact`` only ``fw``) and keeps the best bound of every coupled block.

    Args:
        problem: the mask problem.
        mask: (rows, cols) bool, feasible; or a ``Solution``, whose relaxed mask serves as a hint.
        method: ``"fw"``, the Frank-Wolfe gap of the box relaxation; ``"diagonal"``, that of a tightened relaxation,
            with the largest diagonal that suits all rows; ``"sdp"``, a semidefinite relaxation of single rows with
            cuts; ``"exact"``, an enumeration of all masks of a coupled block, up to 2^20.
        rows: the rows that ``diagonal`` and ``sdp`` are applied to: None for all, a number to draw with probability
            proportional to their objective, or indices. The other rows use the cheaper methods (for ``sdp``,
            ``diagonal`` in all rows); with drawn rows the certificate has an extrapolation to all. ``diagonal`` takes
            all rows if a count spans several.
        time_limit_s: seconds after which ``sdp`` starts no more rows. Every row gets an even share of the time left
            and spends it on more cuts; without a limit about one cut per column is added.
        seed: for drawing rows.
        max_iterations: Frank-Wolfe iterations per relaxation; ``fw`` needs none with a hint.
        memory_budget_bytes: bound on temporaries; ``sdp`` refuses one too small for a single row.

    Raises:
        RelaxPruneError: the mask is not feasible for the problem, or an argument cannot be right.
    """
    _check_arguments(problem, method, rows, time_limit_s, max_iterations, memory_budget_bytes)
    check_seed(seed)
    hint = mask if isinstance(mask, Solved) else None
    values = mask.mask if isinstance(mask, Solved) else mask
    problem.check_mask(values, "mask", memory_budget_bytes)
    if (over := problem.polytope.chosen_from()) is not None:
        known = None if hint is None else hint.certificate
        found = certify(
            problem.over(over),
            rows_apart(problem, over, values, memory_budget_bytes, known),
            method,
            rows=rows,
            time_limit_s=time_limit_s,
            seed=seed,
            max_iterations=max_iterations,
            memory_budget_bytes=memory_budget_bytes,
        )
        return choice_certificate(problem, values, found, memory_budget_bytes)
    started = time.monotonic()
    block_objective = problem.block_objective(values, memory_budget_bytes)
    chosen = chosen_rows(problem, rows, block_objective, seed)
    deadline = None if time_limit_s is None else started + time_limit_s
    task = _Task(problem, values, block_objective, chosen, max_iterations, memory_budget_bytes, deadline)
    candidates = [_plain(task, hint)]
    if method in ("diagonal", "sdp"):
        candidates.append(_diagonal(replace(task, rows=None) if method == "sdp" else task, hint))
    if method == "sdp":
        candidates.append(_sdp(task, best_of(problem, candidates)))
    if method == "exact":
        candidates.append(_exact(task, candidates[0][0]))
    treated = candidates[-1][0].row_method == METHODS.index(method)
    best = best_of(problem, candidates)
    certificate = assemble(problem, values, block_objective, best, method=method, started=started)
    certificate = replace(certificate, rows_covered=int(treated.sum()))
    drawn = chosen is not None and row_count(rows) is not None and problem.polytope.rows_per_block(problem.shape) == 1
    if chosen is None or not drawn or not bool(treated[chosen].all()):
        return certificate
    return replace(certificate, estimate=_estimate(certificate, chosen))


def _check_arguments(
    problem: Problem, method: str, rows: object, time_limit_s: float | None, max_iterations: int, memory_bytes: int
) -> None:
    """Raise RelaxPruneError for a wrong argument of ``certify``, the mask aside."""
    if not isinstance(problem, Problem):
        raise RelaxPruneError(
            f"problem must be a MaskProblem or QuadraticProblem, got {type(problem).__name__}; certify_weights takes a "
            "ReconstructionProblem"
        )
    one_of("method", method, METHODS)
    check_limits(method, rows, time_limit_s)
    if method in ("diagonal", "sdp"):
        problem.minimised.refuse_coupled(f"method {method!r}")
    whole_number("max_iterations", max_iterations, 1)
    positive_number("memory_budget_bytes", memory_bytes)
    if time_limit_s is not None:
        positive_number("time_limit_s", time_limit_s)
    if method == "exact":
        check_enumerable(problem)
    least = least_bytes(problem.shape[1])
    if method == "sdp" and memory_bytes < least:
        raise RelaxPruneError(
            f"memory_budget_bytes is {memory_bytes}, but method 'sdp' takes {least} for a row of "
            f"{problem.shape[1]} columns"
        )


def _estimate(certificate: MaskCertificate, drawn: Tensor) -> Estimate:
    """Return what the bound would be if all rows were treated like the drawn ones, at least what is proven."""
    estimate = extrapolated(certificate.block_objective, certificate.block_lower_bound, drawn)
    proven = certificate.lower_bound
    return replace(estimate, lower_bound=max(proven, estimate.lower_bound), low=max(proven, estimate.low))


def _plain(task: _Task, hint: Solved | None) -> Candidate:
    """Bound by the box relaxation."""
    point = None if hint is None else hint.relaxed_mask
    return _tangent(task, _relaxed(task, task.problem, task.mask, "none")[0] if point is None else point, None)


def _diagonal(task: _Task, hint: Solved | None) -> Candidate:
    """Bound by the tightened relaxation, then again with a diagonal weighted for its solution.

    A solution's relaxed mask is the starting point; if it is one of this relaxation, its diagonal is used too.
    """
    problem = task.problem
    rows = task.rows if problem.polytope.rows_per_block(problem.shape) == 1 else None
    relaxed = None if hint is None else hint.relaxed_mask
    tightening = None
    if hint is not None and relaxed is not None and isinstance(hint.certificate, MaskCertificate):
        tightening = hint.certificate.proof.tightening
    if tightening is not None:  # claimed by the solution, which may be of another problem
        tightening = problem.minimised.proven_tightening(tightening)
    start = task.mask if relaxed is None else relaxed
    part = problem if rows is None else problem.rows(rows)
    point, used = _relaxed(task, part, start if rows is None else start[rows], "diagonal", tightening)
    if used is None:
        return _tangent(task, point, None)
    tried = [_tangent(task, _scattered(task, rows, point), used, rows)]
    if tightening is not None and relaxed is not None:
        return best_of(problem, [_tangent(task, relaxed, tightening), *tried])
    worth = _worth(part, point)
    if float(worth.mean()) > 0:
        better = problem.minimised.largest_tightening(0.5 * worth / worth.mean() + 0.5)
        point, _ = _relaxed(task, part, point, "diagonal", better)
        tried.append(_tangent(task, _scattered(task, rows, point), better, rows))
    return max(tried, key=lambda item: float(item[1].block_lower_bound.sum()))


def _worth(problem: Problem, point: Tensor) -> Tensor:
    """Return the worth of a unit of tightening in every column at a relaxed mask: (cols,) float64."""
    wide = point.to(torch.float64)
    return (problem.shared_diagonal * wide * (1 - wide)).mean(dim=0)


def _relaxed(
    task: _Task, problem: Problem, start: Tensor, tighten: str, tightening: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return a relaxed mask near the minimum of a relaxation, and the tightening used."""
    run = Run(start=start, max_iterations=task.iterations, memory_bytes=task.memory_bytes)
    solver = make_solver("fw", anneal=False, tighten=tighten)
    answer = solver.run(problem, run if tightening is None else replace(run, tightening=tightening))
    return answer.point if answer.relaxed is None else answer.relaxed, answer.tightening


def _scattered(task: _Task, rows: Tensor | None, point: Tensor) -> Tensor:
    """Put relaxed rows among those of the mask: (rows, cols)."""
    if rows is None:
        return point
    return task.mask.to(point.dtype).index_copy_(0, rows, point)


def _tangent(task: _Task, point: Tensor, tightening: Tensor | None, rows: Tensor | None = None) -> Candidate:
    """Bound every block by the tangent at ``point``; a tightening applies to ``rows`` only (None for all)."""
    proof = plain_proof(task.problem, point, tightening)
    if rows is not None:
        method = torch.zeros_like(proof.row_method)
        proof = replace(proof, row_method=method.index_fill_(0, rows, METHODS.index("diagonal")))
    bound = tangent_bound(task.problem, proof, task.memory_bytes)
    return replace(proof, scale=bound.scale), bound


def _sdp(task: _Task, present: Candidate) -> Candidate:
    """Bound the chosen rows by the semidefinite relaxation, the others as they are."""
    problem, proof = task.problem, present[0]
    height = problem.polytope.rows_per_block(problem.shape)
    order = range(problem.shape[0]) if task.rows is None else task.rows.tolist()
    scales = (task.block_objective.abs() / height).repeat_interleave(height)
    prices = _prices(task, proof)
    found = dense_rows(problem, list(order), scales, prices, task.memory_bytes, task.deadline)
    proof = _with_dense(problem, proof, sorted(found, key=lambda item: item.row))
    return proof, tangent_bound(problem, proof, task.memory_bytes, flatten=False)


def _prices(task: _Task, proof: TangentProof) -> Tensor:
    """Return the prices of counts that are no equation of one row, at the relaxation's minimum: (rows, cols)."""
    problem = task.problem
    none = torch.zeros(1, 1, dtype=torch.float64, device=problem.device).expand(problem.shape)
    if problem.polytope.rows_per_block(problem.shape) == 1 and not problem.polytope.is_at_most():
        return none
    tightening = 0.0 if proof.tightening is None else proof.tightening
    prices = none.clone()
    for part, piece in problem.split(MATRICES, task.memory_bytes):
        point = proof.point[part].to(torch.float64)
        slope = 2 * piece.half_gradient(point) + tightening * piece.shared_diagonal * (1 - 2 * point)
        prices[part] = piece.polytope.prices(slope)
    return prices


def _with_dense(problem: Problem, proof: TangentProof, found: list[DenseRow]) -> TangentProof:
    """Return the proof with an L of their own for some rows."""
    if not found:
        return proof
    device = problem.device
    rows = torch.tensor([item.row for item in found], device=device)
    scale = problem.polytope.to_rows(proof.scale, problem.shape[0])
    point = 1 - scale * (1 - proof.point.to(torch.float64))
    counts = torch.tensor([len(item.multiplier) for item in found], device=device)
    return replace(
        proof,
        point=point.index_copy_(0, rows, torch.stack([item.point for item in found])),
        scale=torch.ones_like(proof.scale),
        row_method=proof.row_method.index_fill(0, rows, METHODS.index("sdp")),
        dense_rows=rows,
        dense_diagonal=torch.stack([item.diagonal for item in found]),
        dense_weight=torch.tensor([item.weight for item in found], dtype=torch.float64, device=device),
        cut_row=rows.repeat_interleave(counts),
        cut_index=torch.cat([item.index for item in found]),
        cut_sign=torch.cat([item.sign for item in found]),
        cut_multiplier=torch.cat([item.multiplier for item in found]),
    )


def _exact(task: _Task, proof: TangentProof) -> Candidate:
    """Bound every block by the objective of its best mask, found by enumeration, less the rounding."""
    problem = task.problem
    best = make_solver("enumerate").run(problem, Run(start=task.mask, memory_bytes=task.memory_bytes)).point
    value = problem.block_objective(best, task.memory_bytes)
    # The best mask's own value may be rounded more than that of the mask which was found: allow for any mask.
    slack = _ENUMERATED_SLACK * torch.cat(
        [
            piece.polytope.block_sum(
                torch.maximum(*(piece.rounding(value.new_full(piece.shape, entry)) for entry in (0.0, 1.0)))
            )
            for _, piece in problem.split(MATRICES, task.memory_bytes)
        ]
    )
    method = torch.full_like(proof.row_method, METHODS.index("exact"))
    scale = torch.ones_like(proof.scale)
    bound = Bound(value - slack, value, slack + UNIT_ROUNDOFF * value.abs(), 0.0, scale)
    return replace(proof, point=best, scale=scale, row_method=method), bound
