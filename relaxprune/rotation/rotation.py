"""What is asked of a rotation, and what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from relaxprune.options.target import Target
from relaxprune.problems.checks import check_seed, fraction, one_of, whole_number
from relaxprune.problems.errors import RelaxPruneError

from .learners.base import Learner
from .learners.registry import DEFAULT, make_learner

ROTATIONS = ("free", "heads", "blocks")
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class RotateOptions:
    """How a model is rotated before it is pruned.

    Attributes:
        rotate: "free" for value heads and the residual stream, "heads" for value heads alone; "blocks" for value heads
            and the stream anew in each block, which takes a matrix between any two.
        every: with "blocks": how many consecutive blocks share a rotation.
        learner: where rotations come from: a name, or a ``Learner`` with options of its own.
        target: the masks that are meant to follow.
        shrinkage: share by which Grams shrink to their diagonals while rotations are learned.
        seed: of every random choice.
    """

    rotate: str = "free"
    every: int = 1
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
        whole_number("every", self.every, 1)
        if self.every > 1 and self.rotate != "blocks":
            raise RelaxPruneError(f'every is {self.every}, which is for rotate="blocks", got {self.rotate!r}')
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
            "every": self.every,
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
        untied_bytes: what the model is larger by, since its head is a weight of its own now.
        change_bytes: what it is larger by for matrices between blocks.
        change_share: their multiplications, as a share of those of the blocks' own matrices.
        difference: how far the logits of a few tokens moved, as a share of their size: the median over tokens.
        seconds: time that it took.
    """

    options: RotateOptions
    stream: bool
    reason: str
    ratio: float | None
    heads: tuple[TurnedHeads, ...]
    untied_bytes: int
    change_bytes: int
    change_share: float
    difference: float
    seconds: float

    @property
    def extra_bytes(self) -> int:
        """What the model is larger by in all."""
        return self.untied_bytes + self.change_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's own types."""
        facts: dict[str, Any] = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("options", "heads")
        }
        facts["extra_bytes"] = self.extra_bytes
        return {"options": self.options.to_dict(), "heads": [asdict(item) for item in self.heads], **facts}

    def __str__(self) -> str:
        """Say it in a few lines."""
        learner = self.options.made.name
        lines = []
        if self.stream:
            lines.append(f"residual stream rotated: {learner} at {self.ratio:.3f} of what it was")
        elif self.options.rotate != "heads":
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
        if self.untied_bytes:
            lines.append(f"the output head is no longer tied to the embedding: {self.untied_bytes / _MIB:.1f} MiB more")
        if self.change_bytes:
            lines.append(
                f"the basis changes between blocks: {self.change_bytes / _MIB:.1f} MiB more, and "
                f"{self.change_share:.1%} more multiplications in the blocks; load the model by load_rotated"
            )
        lines.append(f"logits moved by {self.difference:.1e} of their size; {self.seconds:.0f} s")
        return "\n".join(lines)
