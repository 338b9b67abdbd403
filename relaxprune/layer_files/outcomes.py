"""What became of each layer file, and of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relaxprune.solvers.base import Status
from relaxprune.support.json_files import Maybe
from relaxprune.support.tables import table

SOLVED, KEPT, FAILED = "solved", "kept", "failed"
SUMMARY_VERSION = 1
STORED: Mapping[str, Any] = {
    "reason": Maybe(str),
    "final": bool,
    "traceback": Maybe(str),
    "seconds": float,
    "threads": Maybe(int),
    "status": Maybe(str),
    "sparsity": Maybe(float),
    "objective": Maybe(float),
    "relative_error": Maybe(float),
    "lower_bound": Maybe(float),
    "relative_gap": Maybe(float),
}


@dataclass(frozen=True, kw_only=True)
class FileOutcome:
    """What became of one layer file.

    Attributes:
        name: the file's name without its last suffix; the folder of its answer is named so.
        file: its path, as given.
        state: "solved" in this call, "kept" from an earlier one, or "failed".
        reason: why there is no answer, in one sentence; None if there is one.
        final: of a failure: whether it is the file's own fault, so that another try would end the same way.
        traceback: where an error inside relaxprune came from; None for every other end.
        attempts: how many processes have tried in this call; 0 where the outcome was known without one.
        seconds: that the last of them took, reading and writing included.
        threads: that torch used for the answer, whose last bits may depend on them; None without one, and so are the
            others.
        status: as in ``Solution``.
        sparsity: fraction of weights that are pruned.
        objective, relative_error, lower_bound, relative_gap: as in ``Solution``, the bound that of the certificate.
    """

    name: str
    file: str
    state: str
    reason: str | None = None
    final: bool = False
    traceback: str | None = None
    attempts: int = 0
    seconds: float = 0.0
    threads: int | None = None
    status: str | None = None
    sparsity: float | None = None
    objective: float | None = None
    relative_error: float | None = None
    lower_bound: float | None = None
    relative_gap: float | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer."""
        return self.state == FAILED

    def stored(self) -> dict[str, Any]:
        """Return the part that a record keeps, as JSON values."""
        return {name: getattr(self, name) for name in STORED}

    def __str__(self) -> str:
        """Return one line."""
        if self.failed:
            return f"{self.name}: {self.state}: {self.reason}"
        error = "" if self.relative_error is None else f", relative error {self.relative_error:.4g}"
        gap = "" if self.relative_gap is None else f", gap {self.relative_gap:.3g}"
        return f"{self.name}: {self.state}{error}{gap}, {self.status}, {self.seconds:.3g} s"


@dataclass(frozen=True, kw_only=True)
class FilesSummary:
    """What became of all files of one call of ``solve_files``.

    Attributes:
        out: the folder of the answers; that of ``name`` is ``out / "layers" / name``.
        outcomes: one of each file, in the order in which the files were given.
        seconds: of the whole call.
        solver: its name.
        left_out: what the solver's published method does and this call was told not to do.
    """

    out: Path
    outcomes: tuple[FileOutcome, ...]
    seconds: float
    solver: str
    left_out: tuple[str, ...] = ()

    def of(self, state: str) -> list[FileOutcome]:
        """Return the outcomes of a state: "solved", "kept" or "failed"."""
        return [outcome for outcome in self.outcomes if outcome.state == state]

    @property
    def broken_down(self) -> dict[Status, list[str]]:
        """The names of files whose solver broke down, so that their mask is the starting one, by status."""
        names = {status: [one.name for one in self.outcomes if one.status == status.name] for status in Status}
        return {status: found for status, found in names.items() if found and status.failed}

    def counts(self) -> dict[str, int]:
        """Return the number of outcomes of each state."""
        return {state: len(self.of(state)) for state in (SOLVED, KEPT, FAILED)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "schema_version": SUMMARY_VERSION,
            **self.counts(),
            "seconds": self.seconds,
            "solver": self.solver,
            "left_out": list(self.left_out),
            "files": [asdict(outcome) for outcome in self.outcomes],
        }

    def figures(self) -> list[str]:
        """Return the counts, and the relative errors in figures, as lines."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        errors = sorted(one.relative_error for one in self.outcomes if one.relative_error is not None)
        lines = [f"{counts}, {self.seconds:.3g} s"]
        if errors:
            figures = (errors[0], errors[len(errors) // 2], errors[-1])
            lines += table([("", "least", "middle", "most"), ("relative error", *figures)])
        return lines

    def __str__(self) -> str:
        """Return the figures, and the reasons of what failed."""
        return "\n".join([*self.figures(), *map(str, self.of(FAILED))])
