"""What ``relaxprune demo`` prints: its table, and what longer runs of the same model have given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relaxprune.support import table

from .demo_settings import DemoSettings, Extent

OURS, WANDA = "relaxprune", "Wanda"
LONG_MODEL = "smollm2-135m"
# Of that model: `make demo-full` in docs/benchmarks/README.md, and docs/benchmarks/judge.md.
LONG_PERPLEXITIES = {
    "-": {"dense": "11.89"},
    "50%": {WANDA: "22.87", OURS: "16.89"},
    "2:4": {WANDA: "67.02", OURS: "29.70"},
}
LONG_DIVERGENCES = {"Wanda": "0.69", "ALPS": "0.40", "--recipe best with three of its four passes": "0.34"}


@dataclass(frozen=True)
class DemoRow:
    """One line of the table; ``report`` is that of ``relaxprune.json``, None for the dense model."""

    method: str
    amount: str
    perplexity: float
    report: Mapping[str, Any] | None

    def cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        head = (self.method, self.amount, f"{self.perplexity:.2f}")
        if self.report is None:
            return (*head, "-", "-", "-", "-")
        means = (self.report[f"mean_{name}"] for name in ("relative_error", "wanda_ratio", "relative_gap"))
        return (*head, *(f"{mean:.4f}" for mean in means), f"{self.report['seconds']['total']:.0f}")


def demo_table(rows: Iterable[DemoRow], extent: Extent) -> str:
    """Return the table with the conventions of its columns stated."""
    head = ("method", "pattern", "perplexity", "mean error", "of Wanda's", "certified gap", "seconds")
    lines = "\n".join(table([head, *(row.cells() for row in rows)]))
    return (
        f"\n{lines}\n\n"
        f"perplexity: {extent.held_out} held-out windows of {extent.length} tokens. mean error: mean over "
        "layers of objective / dense energy.\n"
        "of Wanda's: mean over layers of objective / objective of Wanda's mask on the same Gram. certified gap: mean "
        "over layers of\n(objective - proven lower bound) / objective. seconds: pruning."
    )


def long_runs(settings: DemoSettings) -> str:
    """Return the figures of longer runs, marked as such; nothing for another model, or for a long run itself."""
    if settings.model != LONG_MODEL or settings.extent.blocks is None:
        return ""
    lines = [
        f"{amount}: " * (amount != "-") + ", ".join(f"{name} {value}" for name, value in values.items())
        for amount, values in LONG_PERPLEXITIES.items()
    ]
    kl = ", ".join(f"{name} {value}" for name, value in LONG_DIVERGENCES.items())
    return (
        "\nQuoted from longer runs of this model (docs/benchmarks), not measured here:\n"
        f"  perplexity, all blocks, 16 windows of 512 tokens (make demo-full): {'; '.join(lines)}\n"
        f"  KL from the dense model at 50%, 24 windows of WikiText-2, weights may move: {kl}\n\n"
    )


def comparison(rows: Sequence[DemoRow]) -> list[str]:
    """Return a notice for every pattern in which relaxprune was not better than Wanda."""
    wanda = {row.amount: row.perplexity for row in rows if row.method == WANDA}
    return [
        f"at {row.amount} relaxprune's perplexity {row.perplexity:.2f} is not below Wanda's {wanda[row.amount]:.2f}"
        for row in rows
        if row.method == OURS and not row.perplexity < wanda[row.amount]
    ]
