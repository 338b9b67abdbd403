"""What layers of one role (all q_proj, all up_proj, ...) have in common in a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RoleSummary:
    """Means over the layers of one role.

    Attributes:
        role: the last part of their names that is no number.
        layers: how many they are.
        mean_relative_gap: mean of their relative gaps.
        mean_proven_share: mean of the proven shares that there are; None where there is none.
    """

    role: str
    layers: int
    mean_relative_gap: float
    mean_proven_share: float | None


def role_of(name: str) -> str:
    """Return what a layer does in its block, by its module name: the last part that is no number, else the name."""
    words = [part for part in name.split(".") if part and not part.isdigit()]
    return words[-1] if words else name


def summarise(layers: Iterable[tuple[str, float, float | None]]) -> list[RoleSummary]:
    """Summarise (module name, relative gap, proven share) by role, in the order in which roles first come."""
    found: dict[str, list[tuple[float, float | None]]] = {}
    for name, gap, share in layers:
        found.setdefault(role_of(name), []).append((gap, share))
    summaries = []
    for role, values in found.items():
        shares = [share for _, share in values if share is not None]
        gap = sum(gap for gap, _ in values) / len(values)
        summaries.append(RoleSummary(role, len(values), gap, sum(shares) / len(shares) if shares else None))
    return summaries
