"""The words of ``relaxprune prune`` that say what layers minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from relaxprune.options import ObjectiveOptions


@dataclass(frozen=True)
class ObjectiveGroup:
    """What layers minimise beside their Grams' error."""

    objective: Annotated[
        str, typer.Option(help="What layers minimise: gram, or also by the loss's gradient: rows, fisher, coupled.")
    ] = "gram"
    objective_strength: Annotated[
        float | None, typer.Option(help="How much the gradient counts, 0 for not at all; 0.5, fisher: 1.")
    ] = None
    objective_cap: Annotated[
        float | None, typer.Option(help="With --objective rows: quantile above which tokens weigh no more; 0.99.")
    ] = None
    objective_groups: Annotated[
        int | None, typer.Option(help="With --objective rows: groups of rows, 4; fisher: rank of each row's term, 16.")
    ] = None

    @property
    def options(self) -> ObjectiveOptions:
        """The options, checked.

        Raises:
            RelaxPruneError: naming the option.
        """
        from relaxprune.options import ObjectiveOptions

        return ObjectiveOptions(self.objective, self.objective_strength, self.objective_cap, self.objective_groups)
