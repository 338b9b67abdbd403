"""Checks of arguments that several entry points share: what ``solve`` refuses, a pruning run refuses too."""

from __future__ import annotations

import torch

from relaxprune.problems import Problem
from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.problems.saliency import SALIENCIES
from relaxprune.solvers import Solver, make_solver
from relaxprune.solvers.base import BUDGETS

OBS_SWAP = "obs-swap"
POLISHES = ("swap", OBS_SWAP)
DEFAULT_START = "wanda"
_LARGEST_SEED = 2**63 - 1  # what torch takes on every platform


def default_solver(moves: bool) -> str:
    """Return the solver that is meant where none is named; ``moves`` says whether weights may move."""
    return "reconstruct" if moves else "fw"


def check_start(start: object) -> None:
    """Raise RelaxPruneError unless ``start`` is the name of a saliency or None."""
    if start is not None and start not in SALIENCIES:
        raise RelaxPruneError(
            f"start must be one of {', '.join(SALIENCIES)}, a mask or None, got {start!r}"
            f"{did_you_mean(str(start), SALIENCIES)}"
        )


def check_polish(polish: object) -> None:
    """Raise RelaxPruneError unless ``polish`` is the name of a polish, ``"auto"`` or None."""
    if polish not in (*POLISHES, "auto", None):
        raise RelaxPruneError(f'polish must be "swap", "obs-swap", "auto" or None, got {polish!r}')


def polisher_of(polish: str | None, solver: Solver) -> Solver | None:
    """Return the solver that polishes after rounding, or None.

    Raises:
        RelaxPruneError: as ``check_polish``.
    """
    check_polish(polish)
    name = solver.polisher() if polish == "auto" else polish
    return None if name is None or solver.name == name else make_solver(name)


def refuse_ignored(solver: Solver, polish: str | None, start: object, *others: float | None) -> None:
    """Raise RelaxPruneError for a budget that would have no effect.

    A start counts as given when it is not the default one, and a polish ends at the time limit too.

    Args:
        solver: with its options.
        polish: as for ``solve``.
        start: as for ``solve``.
        *others: ``max_iterations``, ``time_limit_s`` and ``gap_tolerance``, None where not given.
    """
    given: dict[str, object] = {} if isinstance(start, str) and start == DEFAULT_START else {"start": start}
    given |= {name: value for name, value in zip(BUDGETS[1:], others, strict=True) if value is not None}
    honoured = solver.budgets() | ({"time_limit_s"} if polisher_of(polish, solver) is not None else set())
    for name, value in given.items():
        if name not in honoured:
            what = "a mask" if isinstance(value, torch.Tensor) else repr(value)
            taken = ", ".join(budget for budget in BUDGETS if budget in honoured) or "none"
            raise RelaxPruneError(
                f"{name} is {what}, of which solver {solver.name!r} makes no use; leave it out "
                f"(of {', '.join(BUDGETS)} it takes {taken})"
            )


def refuse_small(memory_budget_bytes: int | None, problem: Problem, *solvers: Solver | None) -> None:
    """Raise RelaxPruneError for a memory budget in which one coupled block does not fit; None is never refused."""
    if memory_budget_bytes is None:
        return
    least, name = neediest(problem, *solvers)
    if memory_budget_bytes < least:
        raise RelaxPruneError(
            f"memory_budget_bytes is {memory_budget_bytes}, but {name!r} needs at least {least} for one block of rows "
            f"that share a count in a problem of shape {problem.shape}"
        )


def neediest(problem: Problem, *solvers: Solver | None) -> tuple[int, str]:
    """Return the smallest memory budget that all of ``solvers`` fit in, and the name of the one that needs it."""
    return max((one.least_bytes(problem), one.name) for one in solvers if one is not None)


def check_seed(seed: object) -> None:
    """Raise RelaxPruneError unless ``seed`` is a whole number that random generators take."""
    whole_number("seed", seed, 0)
    if isinstance(seed, int) and seed > _LARGEST_SEED:
        raise RelaxPruneError(f"seed must be at most {_LARGEST_SEED}, got {seed}")


def check_device(device: str) -> torch.device:
    """Return the device of this name.

    Raises:
        RelaxPruneError: torch knows no such device, or cannot compute on it here.
    """
    try:
        found = torch.device(device)
        works = found.type != "meta"
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ModuleNotFoundError):
        works = False
    if not works:
        raise RelaxPruneError(f"device must be one that works here ({', '.join(_devices())}), got {device!r}")
    return found


def _devices() -> list[str]:
    """Name the CPU and every accelerator that torch finds."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]


def check_budgets(
    max_iterations: object, time_limit_s: object, gap_tolerance: object, memory_budget_bytes: object
) -> None:
    """Raise RelaxPruneError for a budget that is neither None nor a positive finite number (whole, for iterations)."""
    if max_iterations is not None:
        whole_number("max_iterations", max_iterations, 1)
    for name, value in (
        ("time_limit_s", time_limit_s),
        ("gap_tolerance", gap_tolerance),
        ("memory_budget_bytes", memory_budget_bytes),
    ):
        if value is not None and not _is_positive(value):
            raise RelaxPruneError(f"{name} must be a positive number, got {value!r}")


def _is_positive(value: object) -> bool:
    """Return whether ``value`` is a positive finite number; True is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
