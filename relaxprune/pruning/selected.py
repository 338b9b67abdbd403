"""How the shrinkages of a run were chosen, from the reports of its layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .layer_report import InputReport, LayerReport


@dataclass(frozen=True)
class Chosen:
    """What candidates for the shrinkage gave on text that was held out.

    Attributes:
        candidates: the values tried.
        counts: how many Grams each was chosen for.
        errors: of each, the error over that of Wanda's masks, a geometric mean over Grams; empty if nothing could be
            held out of any.
        held_out: the same by what was held out.
    """

    candidates: tuple[float, ...]
    counts: tuple[int, ...]
    errors: tuple[float, ...]
    held_out: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, layers: Iterable[LayerReport]) -> Chosen | None:
        """Return what layers' reports say together, None if nothing was chosen."""
        grams = list(own_grams(layers).values())
        if not grams:
            return None
        candidates = tuple(grams[0].candidates or ())
        counts = Counter(gram.shrinkage for gram in grams)
        names = dict.fromkeys(name for gram in grams for name in gram.held_out_errors or {})
        held_out = {
            name: _means([(gram.held_out_errors or {})[name] for gram in grams if name in (gram.held_out_errors or {})])
            for name in names
        }
        return cls(
            candidates,
            tuple(counts[share] for share in candidates),
            _means([gram.candidate_errors for gram in grams if gram.candidate_errors]),
            held_out,
        )

    def lines(self) -> list[str]:
        """Say it in a line, and one more for all that was held out."""
        pairs = list(zip(self.candidates, self.counts, strict=True))
        chosen = ", ".join(f"{share:g} for {count}" for share, count in pairs if count)
        head = f"shrinkage chosen on held-out text: {chosen} of {sum(self.counts)} Grams"
        if not self.errors:
            return [f"{head}, of which none had text to hold out"]
        return [
            f"{head}; error over Wanda's there {self._written(self.errors)}",
            *(f"  {name}: {self._written(errors)}" for name, errors in self.held_out.items()),
            *(
                [f"  most take the largest candidate, {max(self.candidates):g}: try larger ones"]
                if self._at_end
                else []
            ),
        ]

    @property
    def _at_end(self) -> bool:
        """Whether most Grams take the largest candidate, beyond which there may be better ones."""
        largest = max(self.candidates)
        return largest < 1 and 2 * self.counts[self.candidates.index(largest)] > sum(self.counts)

    def _written(self, errors: Sequence[float]) -> str:
        """Write the error of each candidate."""
        return ", ".join(f"{error:.4f} at {share:g}" for share, error in zip(self.candidates, errors, strict=True))


def own_grams(layers: Iterable[LayerReport]) -> dict[tuple[int, str], InputReport]:
    """Return the inputs of layers whose shrinkage was chosen, one for each Gram, by block and its first layer."""
    return {(item.block, item.inputs.gram): item.inputs for item in layers if item.inputs.candidates is not None}


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the geometric mean of each candidate's errors."""
    return tuple(math.exp(sum(map(math.log, column)) / len(column)) for column in zip(*rows, strict=True))
