"""Who ran: a registered solver that no conformance check reached makes the whole run fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

REFERENCE = "the reference relaxation (Clarabel)"


@dataclass
class Account:
    """What this session's conformance suite did.

    Attributes:
        planned: test functions that take a solver, by file and name.
        started: those of them that began.
        partial: whether some of them were deselected, or the run was stopped.
        ran: solvers that gave an answer which a check looked at.
        refused: the last reason a solver gave for not taking a problem.
    """

    planned: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    partial: bool = False
    ran: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain values, which one process can send to another."""
        sets = {name: sorted(getattr(self, name)) for name in ("planned", "started", "ran")}
        return {**sets, "partial": self.partial, "refused": self.refused}

    def add(self, account: dict[str, Any]) -> None:
        """Take in what another process of the same run did, as ``to_dict`` gives it."""
        for name in ("planned", "started", "ran"):
            getattr(self, name).update(account[name])
        self.partial |= account["partial"]
        self.refused |= account["refused"]

    def complete(self) -> bool:
        """Tell whether the whole suite ran, so that a solver that is missing never ran at all."""
        return bool(self.planned) and self.planned <= self.started and not self.partial

    def missing(self, names: Iterable[str]) -> list[str]:
        """Name the solvers, and the reference, that a complete run should have used and did not."""
        return [name for name in (*names, REFERENCE) if name not in self.ran] if self.complete() else []


ACCOUNT = Account()
