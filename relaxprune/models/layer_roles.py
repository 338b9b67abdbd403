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
        mean_estimated_gap: mean of the relative gaps that drawn rows let expect; None where a layer has none.
        mean_proven_share: mean of the proven shares that there are; None where there is none.
    """

    role: str
    layers: int
    mean_relative_gap: float
    mean_estimated_gap: float | None
    mean_proven_share: float | None


def role_of(name: str) -> str:
    """Return what a layer does in its block, by its module name: the last part that is no number, else the name."""
    words = [part for part in name.split(".") if part and not part.isdigit()]
    return words[-1] if words else name


def summarise(layers: Iterable[tuple[str, float, float | None, float | None]]) -> list[RoleSummary]:
    """Summarise (module name, relative gap, estimated gap, proven share) by role, in the order in which roles come."""
    found: dict[str, list[tuple[float, float | None, float | None]]] = {}
    for name, gap, estimate, share in layers:
        found.setdefault(role_of(name), []).append((gap, estimate, share))
    summaries = []
    for role, values in found.items():
        estimates = [estimate for _, estimate, _ in values if estimate is not None]
        shares = [share for _, _, share in values if share is not None]
        gap = sum(gap for gap, _, _ in values) / len(values)
        estimated = _mean(estimates) if len(estimates) == len(values) else None
        summaries.append(RoleSummary(role, len(values), gap, estimated, _mean(shares)))
    return summaries


def _mean(values: list[float]) -> float | None:
    """Return the mean, None for no values."""
    return sum(values) / len(values) if values else None
