"""What tuning gained, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

DIVERGENCE, ERROR = "divergence", "error"


@dataclass(frozen=True)
class BlockTuning:
    """The gain of tuning one block, or a part of one.

    Attributes:
        block: index of the block.
        epochs: passes over the batches whose weights were kept; 0 if none improved the held-out batches.
        steps: optimiser steps up to then.
        error_before, error_after: on the batches that were tuned on, the mean over tokens of ‖y − ỹ‖² / ‖y‖²: y is what
            the dense block puts out, ỹ the pruned one. What reads it normalises it token by token as well.
        held_out_before, held_out_after: the same on the batches held out.
        seconds: time it took.
        part: name of the part in the block, "" for the whole block; the errors are then of what the part puts out.
    """

    block: int
    epochs: int
    steps: int
    error_before: float
    error_after: float
    held_out_before: float
    held_out_after: float
    seconds: float
    part: str = ""


@dataclass(frozen=True)
class Refinement:
    """The gain of refining the whole model.

    Attributes:
        measure: "divergence", the KL divergence from the dense model's predictions in nats a token; "error" for a model
            that predicts no tokens: the mean over tokens of ‖y − ỹ‖² / ‖y‖² of what it puts out.
        passes: passes over the windows whose weights were kept; 0 if none improved the held-out windows.
        steps: optimiser steps up to then.
        tuned_windows: how many of the windows that were tuned on ``tuned_before`` and ``tuned_after`` are means over.
        tuned_before, tuned_after: on them, the mean of the measure.
        held_out_windows: how many windows were held out.
        held_out_before, held_out_after: the mean of the measure on them.
        seconds: time it took.
    """

    measure: str
    passes: int
    steps: int
    tuned_windows: int
    tuned_before: float
    tuned_after: float
    held_out_windows: int
    held_out_before: float
    held_out_after: float
    seconds: float

    def __str__(self) -> str:
        """Say it in one line."""
        unit = _unit(self.measure)
        if not self.passes:
            return (
                f"refined: no pass improved the {unit} on {self.held_out_windows} held-out windows, "
                f"{self.held_out_before:.4g}: kept weights stay as they were"
            )
        return (
            f"refined ({self.passes} {'pass' if self.passes == 1 else 'passes'}, {self.steps} steps): {unit} on "
            f"{self.held_out_windows} held-out windows {self.held_out_before:.4g} before, {self.held_out_after:.4g} "
            f"after; on {self.tuned_windows} of the others {self.tuned_before:.4g} and {self.tuned_after:.4g}"
        )


@dataclass(frozen=True)
class Reselection:
    """The gain of choosing masks again by the whole model.

    Attributes:
        rounds: how many rounds changed masks; 0 if none improved the held-out windows.
        moved: parameter name -> how many weights are kept now and were pruned before, as many as the other way round;
            only layers with any.
        the others: as in ``Refinement``.
    """

    measure: str
    rounds: int
    moved: dict[str, int]
    tuned_windows: int
    tuned_before: float
    tuned_after: float
    held_out_windows: int
    held_out_before: float
    held_out_after: float
    seconds: float

    def __str__(self) -> str:
        """Say it in one line."""
        unit = _unit(self.measure)
        if not self.rounds:
            return (
                f"reselected: no other masks improved the {unit} on {self.held_out_windows} held-out windows, "
                f"{self.held_out_before:.4g}: masks stay as they were"
            )
        count = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        return (
            f"reselected ({count}, {sum(self.moved.values())} weights exchanged in {len(self.moved)} layers, whose "
            f"errors and bounds above are of their masks before): {unit} on {self.held_out_windows} held-out windows "
            f"{self.held_out_before:.4g} before, {self.held_out_after:.4g} after; on {self.tuned_windows} of the "
            f"others {self.tuned_before:.4g} and {self.tuned_after:.4g}"
        )


@dataclass(frozen=True)
class ReselectingState:
    """How far choosing masks again is.

    Attributes:
        measure: as in ``Refinement``.
        number: the round just finished; 0 before the first.
        rounds: the most rounds.
        moved: how many weights are kept now that were not at the start.
        held_out_before: the measure on the held-out windows at the start.
        held_out: after the last round that changed masks; at the start the same.
    """

    measure: str
    number: int
    rounds: int
    moved: int
    held_out_before: float
    held_out: float

    def __str__(self) -> str:
        """Say it in a few words."""
        done = f"round {self.number} of {self.rounds}, {self.moved} weights exchanged"
        return f"{done}, {_held_out(self.measure, self.held_out, self.held_out_before if self.number else None)}"


@dataclass(frozen=True)
class RefiningState:
    """How far refining is.

    Attributes:
        measure: as in ``Refinement``.
        number: the pass under way, or just finished; 0 before the first.
        passes: the most passes.
        step: optimiser steps so far.
        steps: the most steps.
        held_out_before: the measure on the held-out windows at the start.
        held_out: after the last finished pass; at the start the same.
    """

    measure: str
    number: int
    passes: int
    step: int
    steps: int
    held_out_before: float
    held_out: float

    def __str__(self) -> str:
        """Say it in a few words."""
        change = _held_out(self.measure, self.held_out, self.held_out_before if self.number else None)
        return f"pass {self.number} of {self.passes}, step {self.step} of {self.steps}, {change}"


def _unit(measure: str) -> str:
    """Return what a measure is called in a sentence."""
    return "KL from the dense model" if measure == DIVERGENCE else "relative error of the output"


def _held_out(measure: str, now: float, before: float | None) -> str:
    """Say what a measure is on held-out windows now, and what it was before if that is something else."""
    said = f"held-out {'KL' if measure == DIVERGENCE else 'error'} {now:.4g}"
    return said if before is None else f"{said}, {before:.4g} before"
