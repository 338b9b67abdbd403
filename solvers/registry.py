"""Names of solvers: lazy paths, entry points of other packages, and a suggestion for a misspelt name."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from relaxprune.problems import RelaxPruneError
from relaxprune.problems.errors import did_you_mean

from .base import Solver

ENTRY_POINT_GROUP = "relaxprune.solvers"

_BUILT_IN: dict[str, str] = {
    "fw": "relaxprune.solvers.frank_wolfe.fw:FrankWolfe",
    "sparsefw": "relaxprune.solvers.frank_wolfe.sparsefw:SparseFW",
    "swap": "relaxprune.solvers.exchange.swap:Swap",
    "ils": "relaxprune.solvers.exchange.ils:IteratedLocalSearch",
    "dicg": "relaxprune.solvers.frank_wolfe.dicg:DICG",
    "afw": "relaxprune.solvers.frank_wolfe.away_step:AwayStep",
    "pfw": "relaxprune.solvers.frank_wolfe.pairwise:Pairwise",
    "bpfw": "relaxprune.solvers.frank_wolfe.blended_pairwise:BlendedPairwise",
    "fista": "relaxprune.solvers.projection.fista:Fista",
    "admm": "relaxprune.solvers.projection.admm:Admm",
    "reconstruct": "relaxprune.solvers.weights.reconstruct:Reconstruct",
    "alps": "relaxprune.solvers.weights.alps:Alps",
    "sparsegpt": "relaxprune.solvers.weights.sparsegpt:SparseGPT",
    "obs-swap": "relaxprune.solvers.weights.obs_swap:ObsSwap",
    "cvxpy": "relaxprune.solvers.reference.relaxation:Relaxation",
    "exact": "relaxprune.solvers.reference.exact:Exact",
    "enumerate": "relaxprune.solvers.reference.enumeration:Enumerate",
    "wanda": "relaxprune.solvers.reference.saliency:Wanda",
    "ria": "relaxprune.solvers.reference.saliency:RIA",
    "magnitude": "relaxprune.solvers.reference.saliency:Magnitude",
}


def _outside() -> dict[str, EntryPoint]:
    """Return the solvers that other installed packages declare; they cannot override our names."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in _BUILT_IN or point.name in found:
            raise RelaxPruneError(f"solver {point.name!r} is declared twice; the second time by {point.value}")
        found[point.name] = point
    return found


def solver_names() -> list[str]:
    """Return the names of all solvers, ours first, without importing any."""
    return [*_BUILT_IN, *sorted(_outside())]


def polish_names() -> list[str]:
    """Return the names of the solvers that can polish: the values of ``polish``. Imports all of them."""
    return [name for name in solver_names() if polishes(name)]


def polishes(name: object) -> bool:
    """Return whether ``name`` is a solver that can polish; one that cannot be loaded cannot."""
    try:
        return isinstance(name, str) and solver_class(name).polishes
    except RelaxPruneError:
        return False


def solver_distribution(name: str) -> str | None:
    """Return the installed distribution that declares a solver; None for our own, or if it is not known."""
    distribution = getattr(_outside().get(name), "dist", None)
    return None if distribution is None else str(distribution.name)


def solver_class(name: str) -> type[Solver]:
    """Import the solver of this name.

    Raises:
        RelaxPruneError: no solver has the name (the closest is suggested), or it is not a Solver.
    """
    if name in _BUILT_IN:  # asked first: reading what all packages declare takes milliseconds
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif name in (outside := _outside()):
        try:
            found = outside[name].load()
        except Exception as error:  # whatever its package does when it is imported
            raise RelaxPruneError(f"solver {name!r} ({outside[name].value}) cannot be loaded: {error}") from error
    else:
        known = [*_BUILT_IN, *sorted(outside)]
        raise RelaxPruneError(f"solver is {name!r}; known solvers are {', '.join(known)}{did_you_mean(name, known)}")
    if not (isinstance(found, type) and issubclass(found, Solver) and hasattr(found, "name")):
        raise RelaxPruneError(
            f"solver {name!r} must be a subclass of relaxprune.solvers.Solver with a name, got {found!r}"
        )
    return found


def make_solver(solver: str | Solver, /, **options: Any) -> Solver:
    """Return a solver instance from a name and options, or the instance given.

    Raises:
        RelaxPruneError: unknown name, unknown option, or options with an instance.
    """
    if isinstance(solver, Solver):
        if options:
            raise RelaxPruneError(
                f"solver is an instance, which carries its own options; got {', '.join(sorted(options))} as well"
            )
        return solver
    if not isinstance(solver, str):
        raise RelaxPruneError(f"solver must be a name or a Solver instance, got {type(solver).__name__}")
    found = solver_class(solver)
    known = [item.name for item in fields(found)]
    for option in options:
        if option not in known:
            raise RelaxPruneError(
                f"solver {solver!r} has no option {option!r}{did_you_mean(option, known)} "
                f"(its options are {', '.join(known) or 'none'})"
            )
    try:
        return found(**options)
    except TypeError as error:
        raise RelaxPruneError(f"solver {solver!r} cannot take these options: {error}") from error
