"""The options that rotate a dense model, as they are typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input

if TYPE_CHECKING:
    from relaxprune.options import Target
    from relaxprune.rotation import RotateOptions


@dataclass(frozen=True)
class LearnerGroup:
    """Where rotations come from."""

    rotate_by: Annotated[
        str | None, typer.Option(metavar="LEARNER", help="With a rotation: what finds it, error, entropy or pca.")
    ] = None
    rotate_option: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="An option of --rotate-by, as steps=100; may be repeated.")
    ] = field(default_factory=list)

    rotate_every: Annotated[
        int, typer.Option(min=1, help="With blocks: how many consecutive blocks share a rotation.")
    ] = 1

    def options(self, rotate: str, target: Target, seed: int) -> RotateOptions:
        """Return what is asked for, checked.

        Raises:
            RelaxPruneError: naming the option.
        """
        from relaxprune.rotation import RotateOptions, make_learner
        from relaxprune.rotation.learners.registry import DEFAULT

        from .solver_options import parse_words

        name = DEFAULT if self.rotate_by is None else self.rotate_by
        given = parse_words("learner", name, self.rotate_option, make_learner, "--rotate-option")
        return RotateOptions(
            rotate=rotate, every=self.rotate_every, learner=make_learner(name, **given), target=target, seed=seed
        )


@dataclass(frozen=True)
class RotationGroup(LearnerGroup):
    """Whether the dense model is rotated before it is pruned."""

    rotate: Annotated[
        str | None,
        typer.Option(help="Rotate the dense model first: free (residual stream and value heads), heads, or blocks."),
    ] = None

    def asked(self, target: Target, seed: int) -> RotateOptions | None:
        """Return what is asked for, checked; None for no rotation.

        Raises:
            RelaxPruneError: naming the option.
        """
        if self.rotate is not None:
            return self.options(self.rotate, target, seed)
        given = {"--rotate-by": self.rotate_by is not None, "--rotate-option": bool(self.rotate_option)}
        given |= {"--rotate-every": self.rotate_every > 1}
        for name, value in given.items():
            if value:
                raise bad_input(f"{name} is given, but there is no --rotate")
        return None
