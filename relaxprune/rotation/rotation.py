"""What is asked of a rotation, and what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from relaxprune.options.target import Target
from relaxprune.problems.checks import check_seed, fraction, one_of
from relaxprune.problems.errors import RelaxPruneError

from .learners.base import Learner
from .learners.registry import DEFAULT, make_learner

ROTATIONS = ("free", "heads")
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class RotateOptions:
    """How a model is rotated before it is pruned.

    Attributes:
        rotate: "free" for value heads and the residual stream, "heads" for value heads alone.
        learner: where rotations come from: a name, or a ``Learner`` with options of its own.
        target: the masks that are meant to follow.
        shrinkage: share by which Grams shrink to their diagonals while rotations are learned.
        seed: of every random choice.
    """

    rotate: str = "free"
    learner: str | Learner = DEFAULT
    target: Target = field(default_factory=lambda: Target(sparsity=0.5))
    shrinkage: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            RelaxPruneError: naming the option.
        """
        one_of("rotate", self.rotate, ROTATIONS)
        make_learner(self.learner)
        if not isinstance(self.target, Target):
            raise RelaxPruneError(f"target must be a Target, got {self.target!r}")
        fraction("shrinkage", self.shrinkage)
        check_seed(self.seed)

    @property
    def made(self) -> Learner:
        """The learner."""
        return make_learner(self.learner)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's own types."""
        learner = self.made
        return {
            "rotate": self.rotate,
            "learner": learner.name,
            "learner_options": asdict(learner),
            "target": self.target.to_dict(),
            "shrinkage": self.shrinkage,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class TurnedHeads:
    """The value heads of one block.

    Attributes:
        block: its number.
        heads: how many turn.
        reason: why none do, as a clause; "" otherwise.
        ratio: what the learner lowers, over what it was: a mean over what they touch; None if none turn.
    """

    block: int
    heads: int
    reason: str = ""
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """What became of a rotation.

    Attributes:
        options: what was asked for.
        stream: whether the residual stream turns.
        reason: why it does not, as a clause; "" if it does.
        ratio: what the learner lowers, over what it was: a mean over what the stream touches; None if it stays.
        heads: the value heads, block by block.
        extra_bytes: what the model is larger by, since its head is a weight of its own now.
        difference: how far the logits of a few tokens moved, as a share of their size: the median over tokens.
        seconds: time that it took.
    """

    options: RotateOptions
    stream: bool
    reason: str
    ratio: float | None
    heads: tuple[TurnedHeads, ...]
    extra_bytes: int
    difference: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's own types."""
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("options", "heads")}
        return {"options": self.options.to_dict(), "heads": [asdict(item) for item in self.heads], **facts}

    def __str__(self) -> str:
        """Say it in a few lines."""
        learner = self.options.made.name
        lines = []
        if self.stream:
            lines.append(f"residual stream rotated: {learner} at {self.ratio:.3f} of what it was")
        elif self.options.rotate == "free":
            lines.append(f"residual stream left alone: {self.reason}")
        turned = [item for item in self.heads if item.heads]
        if turned:
            ratio = sum(item.ratio or 0.0 for item in turned) / len(turned)
            count = sum(item.heads for item in turned)
            lines.append(
                f"{count} value heads of {len(turned)} blocks rotated: {learner} at {ratio:.3f} of what it was"
            )
        for reason, count in Counter(item.reason for item in self.heads if item.reason).items():
            lines.append(f"value heads of {count} blocks left alone: {reason}")
        if self.extra_bytes:
            lines.append(f"the output head is no longer tied to the embedding: {self.extra_bytes / _MIB:.1f} MiB more")
        lines.append(f"logits moved by {self.difference:.1e} of their size; {self.seconds:.0f} s")
        return "\n".join(lines)
