"""The options of ``relaxprune solve``, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input
from .option_groups import Seed, weights_word

if TYPE_CHECKING:
    from relaxprune import MaskProblem, ReconstructionProblem
    from relaxprune.layer_files.layer_task import Proof


@dataclass(frozen=True)
class MovingGroup:
    """Whether kept weights get new values, and where to write them."""

    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit", help="Give kept weights new values, or leave them; default: the solver's own way."
        ),
    ] = None
    damping: Annotated[
        float | None,
        typer.Option(help="With --refit: what moving a weight costs, of the Gram's mean diagonal; 0.03, alps: 0.01."),
    ] = None
    weight_out: Annotated[
        Path | None, typer.Option("--weight-out", help="If weights move: file for the new weight.")
    ] = None

    @property
    def weights(self) -> str | None:
        """What to do with kept weights, as in ``PruneOptions``."""
        return weights_word(self.refit)

    def check(self, moves: bool) -> None:
        """Refuse options that are for weights that move, if they do not."""
        for name, value in (("--damping", self.damping), ("--weight-out", self.weight_out)):
            if value is not None and not moves:
                raise bad_input(f"{name} is {str(value)!r}, but there is no --refit")


@dataclass(frozen=True)
class ResultGroup:
    """The device to work on, and the file or folder for the result."""

    out: Annotated[
        Path | None, typer.Option(help="File for the mask, the bound and the settings; of many files, a folder.")
    ] = None
    device: Annotated[str | None, typer.Option(help="Device to work on, such as cpu or cuda:0.")] = None
    seed: Seed = 0


@dataclass(frozen=True)
class ProofGroup:
    """The certificate: its method, None for the solver's own; its limits; its file."""

    certify: Annotated[
        str | None, typer.Option(help="Prove a bound: fw or diagonal (cheap), sdp (seconds a row), exact (tiny rows).")
    ] = None
    certify_rows: Annotated[int | None, typer.Option(help="Rows to draw for diagonal or sdp; default all.")] = None
    certify_time: Annotated[float | None, typer.Option(help="Seconds for sdp, shared by its rows.")] = None
    certificate: Annotated[
        Path | None, typer.Option(help="File for the proof, the solver's own without --certify; for `verify`.")
    ] = None

    def check(self) -> None:
        """Refuse an unknown method, and limits without one."""
        from relaxprune.certificates.verify.claim import METHODS
        from relaxprune.problems.checks import one_of

        if self.certify is not None:
            one_of("--certify", self.certify, METHODS)
        for name, value in (("--certify-rows", self.certify_rows), ("--certify-time", self.certify_time)):
            if value is not None and self.certify is None:
                raise bad_input(f"{name} is {value}, but there is no --certify")

    @property
    def proof(self) -> Proof:
        """What is asked for."""
        from relaxprune.layer_files.layer_task import Proof

        return Proof(method=self.certify, rows=self.certify_rows, time_limit_s=self.certify_time)

    def check_for(self, problem: MaskProblem | ReconstructionProblem) -> None:
        """Refuse what is impossible for a problem, before any work."""
        from relaxprune.certificates.limits import check_limits

        if self.certify is not None:
            check_limits(self.certify, self.certify_rows, self.certify_time)
        if problem.moves_weights and self.certify not in (None, "exact"):
            raise bad_input(f"--certify must be exact with --refit, got {self.certify!r}; leave it out otherwise")
        self.proof.check_for(problem)


@dataclass(frozen=True)
class ManyGroup:
    """How many files are solved at the same time; None for one file by itself."""

    jobs: Annotated[int | None, typer.Option(help="Many files: how many at a time, each in a process; 1.")] = None
    retries: Annotated[int | None, typer.Option(help="Many files: more tries of one whose process died; 1.")] = None
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Many files: for all of them, such as 24GiB; what is free.")
    ] = None

    def check(self) -> None:
        """Refuse options that are for many files."""
        for name, value in (("--retries", self.retries), ("--memory", self.memory)):
            if value is not None and self.jobs is None:
                raise bad_input(f"{name} is {value}, which is for many files; leave it out or give --jobs")


@dataclass(frozen=True)
class Wanted:
    """What is to come out: weights, result and proof."""

    moving: MovingGroup
    result: ResultGroup
    proof: ProofGroup
