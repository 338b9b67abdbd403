"""What a converted model must share with the one that the run stores: weights, zeros, logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relaxprune.models.token_limits import positions, vocabulary
from relaxprune.problems.errors import RelaxPruneError

from .target import ConvertedModel, Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WINDOWS, _LENGTH, _SEED = 2, 32, 20
_UNPACKED = 1e-6  # where the same dense weights are multiplied by the same code


@dataclass(frozen=True)
class LogitDifference:
    """How far logits are from others on the same tokens.

    Attributes:
        relative: median over positions of the norm of the difference over that of the reference, both less their mean
            over the vocabulary, which softmax ignores.
        divergence: mean over positions of KL(reference ‖ other), in nats.
        same_choice: share of positions whose likeliest token is the same.
    """

    relative: float
    divergence: float
    same_choice: float


def refuse_difference(target: Target, converted: ConvertedModel, found: LogitDifference) -> float:
    """Refuse logits that are farther from those of the same weights, dense, than the way of multiplying explains.

    Returns:
        The largest difference that is accepted.

    Raises:
        RelaxPruneError: naming both.
    """
    tolerance, explains = (target.tolerance, target.explains) if converted.kernel else (_UNPACKED, "unpacking")
    if not found.relative <= tolerance:  # NaN is refused too
        raise RelaxPruneError(
            f"logits of target {target.name!r} are {found.relative:.2g} of their size from those of the same weights "
            f"in a dense model, and {explains} explains {tolerance:g} at most"
        )
    return tolerance


def logit_difference(
    first: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], model: PreTrainedModel
) -> LogitDifference:
    """Compare two ways to logits on fixed random tokens that a model knows.

    Raises:
        RelaxPruneError: they have different shapes.
    """
    tokens = check_tokens(model)
    one, other = first(tokens).double().cpu(), reference(tokens).double().cpu()
    if one.shape != other.shape:
        raise RelaxPruneError(f"logits of shapes {tuple(one.shape)} and {tuple(other.shape)} are of different models")
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)  # (windows, length, tokens)
    relative = ((one - other).norm(dim=-1) / other.norm(dim=-1)).median()
    log_one, log_other = one.log_softmax(-1), other.log_softmax(-1)
    divergence = (log_other.exp() * (log_other - log_one)).sum(-1).mean()
    same = (one.argmax(-1) == other.argmax(-1)).double().mean()
    return LogitDifference(float(relative), float(divergence), float(same))


def check_tokens(model: PreTrainedModel) -> Tensor:
    """Return the tokens of the check, (2, 32) int64 or as long as the model allows, the same in every run."""
    length = min(_LENGTH, positions(model) or _LENGTH)
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(0, vocabulary(model) or 2, (_WINDOWS, length), generator=generator)


def check_weights(target: Target, converted: ConvertedModel, stored: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """Compare every converted weight with what the run stores.

    Args:
        target: says how much rounding explains.
        converted: read from the files.
        stored: parameter -> weight and mask, (rows, cols) both.

    Returns:
        How many entries the masks prune, all of which are 0.

    Raises:
        RelaxPruneError: a weight is missing, differs by more, or is not 0 where its mask prunes.
    """
    pruned = 0
    if set(converted.weights) != set(stored):
        lost = sorted(set(converted.weights) ^ set(stored))
        raise RelaxPruneError(f"converted weights are not those that were to be converted: see {lost[0]!r}")
    for name, (weight, mask) in stored.items():
        found = converted.weights[name]()
        if found.shape != weight.shape:
            raise RelaxPruneError(
                f"{name!r} has shape {tuple(found.shape)} after conversion, {tuple(weight.shape)} before"
            )
        if bool((found[~mask] != 0).any()):
            raise RelaxPruneError(f"{name!r} is not 0 everywhere where its mask prunes, after conversion")
        # One float32 rounding more than the form's own: of the product with a scale.
        allowed = target.rounding(weight) * (1 + 1e-6)
        excess = (found.double() - weight.double()).abs() > allowed
        if bool(excess.any()) or not bool(torch.isfinite(found).all()):
            raise RelaxPruneError(f"{name!r} differs in {int(excess.sum())} entries by more than rounding explains")
        pruned += int((~mask).sum())
    return pruned
