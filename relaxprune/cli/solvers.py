"""``relaxprune solvers``: what can be passed to ``--solver``, and each solver's options."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated

import typer


def solvers(
    name: Annotated[str | None, typer.Argument(help="A solver, to list its options.")] = None,
) -> None:
    """List the solvers, or the options of one of them."""
    from relaxprune.solvers import make_solver
    from relaxprune.solving import available_solvers

    from .solver_options import option_types

    if name is None:
        known = available_solvers()
        width = max(map(len, known))
        for solver, line in known.items():
            print(f"{solver:<{width}}  {line}")
        return
    instance = make_solver(name)
    print(f"{name}: {available_solvers().get(name, '')}")
    types = option_types(instance)
    for field in fields(instance):
        if field.name in types:
            default = getattr(instance, field.name) if field.default is MISSING else field.default
            print(f"  --option {field.name}={default}   ({types[field.name].label})")
