"""Random problems small enough to enumerate, with Gram matrices that are hard on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relaxprune import NM, KSparse, MaskProblem
from relaxprune.problems import Polytope

from .enumeration import Rule

GRAMS = (
    "gaussian",
    "low rank",
    "duplicated",
    "scaled",
    "dead",
    "float32 noise",
    "negative",
    "ill-conditioned",
    "diagonal",
    "integers",
    "zero",
)
SETS = ("row", "row at most", "layer", "layer at most", "nm", "nm at most")
WEIGHTS = ("normal", "bf16", "float32", "ties", "zero row", "spread", "null vector")


@dataclass(frozen=True)
class Case:
    """A problem and the same set of masks written independently."""

    problem: MaskProblem
    rule: Rule
    label: str


class Draw:
    """Random numbers of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float64."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in [low, high), float64."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def pick(self, options: tuple[str, ...]) -> str:
        """One of the options."""
        return options[self.whole(0, len(options) - 1)]

    def bits(self, share: float, *shape: int) -> Tensor:
        """True with this probability."""
        return torch.rand(shape, generator=self.generator) < share


def make_gram(kind: str, cols: int, draw: Draw) -> Tensor:
    """A (cols, cols) Gram matrix of one of ``GRAMS``; all but "float32 noise" in float64."""
    inputs = draw.normal(4 * cols, cols) @ (torch.eye(cols, dtype=torch.float64) + 0.7 * draw.normal(cols, cols))
    if kind in ("low rank", "negative"):
        inputs = inputs[: max(1, cols // 2)]
    if kind == "duplicated":
        inputs[:, cols // 2 :] = inputs[:, : cols - cols // 2] * 3.0
    if kind == "scaled":
        inputs = inputs * 10 ** draw.uniform(-6, 6, cols)
    if kind == "dead":
        inputs = inputs * draw.bits(0.6, cols)
    gram = inputs.T @ inputs / len(inputs)
    if kind == "float32 noise":
        single = inputs.float()
        gram = single.T @ single / len(single)
        gram = gram * (1 + 1e-6 * draw.normal(cols, cols).float())
    if kind == "negative":
        root = gram.diagonal().sqrt()
        correlation = gram / root / root.unsqueeze(1)
        below = float(draw.uniform(0, 5e-4))
        gram = ((1 + below) * correlation - below * torch.eye(cols, dtype=torch.float64)) * root * root.unsqueeze(1)
    if kind == "ill-conditioned":
        basis = torch.linalg.qr(draw.normal(cols, cols)).Q
        gram = (basis * 10 ** draw.uniform(-12, 0, cols)) @ basis.T
    if kind == "diagonal":
        gram = torch.diag(10 ** draw.uniform(-3, 3, cols))
    if kind == "integers":
        signs = torch.randint(-1, 2, (max(1, cols // 2), cols), generator=draw.generator).to(torch.float64)
        gram = signs.T @ signs
    if kind == "zero":
        gram = torch.zeros(cols, cols, dtype=torch.float64)
    return gram if kind == "float32 noise" else (gram + gram.T) / 2


def make_weight(kind: str, shape: tuple[int, int], gram: Tensor, draw: Draw) -> Tensor:
    """A (rows, cols) weight of one of ``WEIGHTS``."""
    weight = draw.normal(*shape)
    if kind == "bf16":
        return weight.to(torch.bfloat16)
    if kind == "float32":
        return weight.float()
    if kind == "ties":
        return weight.round()
    if kind == "zero row":
        weight[draw.whole(0, shape[0] - 1)] = 0
    if kind == "spread":
        weight = weight * 10 ** draw.uniform(-6, 6, *shape)
    if kind == "null vector":
        symmetric = (gram + gram.T).to(torch.float64) / 2
        weight[0] = torch.linalg.eigh(symmetric).eigenvectors[:, 0] * (1 + 1e-3 * draw.normal(shape[1]))
    return weight


def make_set(kind: str, draw: Draw) -> tuple[Polytope, Rule]:
    """A polytope of one of ``SETS`` over a small shape, and its rule."""
    at_most = kind.endswith("at most")
    if kind.startswith("layer"):
        shape = (draw.whole(1, 3), draw.whole(2, 4))
        keep = draw.whole(0, shape[0] * shape[1])
        return KSparse(keep, per="layer", at_most=at_most), Rule.layer(shape, keep, at_most)
    rows = draw.whole(1, 4)
    if kind.startswith("nm"):
        group = draw.whole(1, 4)
        shape = (rows, group * draw.whole(1, 8 // group))
        keep = draw.whole(0, group)
        return NM(keep, group, at_most), Rule.groups(shape, keep, group, at_most)
    shape = (rows, draw.whole(2, 8))
    keep = draw.whole(0, shape[1])
    return KSparse(keep, at_most=at_most), Rule.groups(shape, keep, shape[1], at_most)


def fixed_entries(rule: Rule, draw: Draw) -> tuple[Tensor | None, Tensor | None]:
    """Entries to fix so that a feasible mask is left: taken from one feasible mask."""
    block_masks = [masks[draw.whole(0, len(masks) - 1)] for masks in rule.blocks]
    mask = torch.cat([torch.from_numpy(part) for part in block_masks])
    kept, pruned = mask & draw.bits(0.4, *rule.shape), ~mask & draw.bits(0.4, *rule.shape)
    form = draw.whole(0, 2)
    return (None if form == 1 else kept), (None if form == 2 else pruned)


def random_case(
    seed: int,
    sets: tuple[str, ...] = SETS,
    grams: tuple[str, ...] = GRAMS,
    weights: tuple[str, ...] = WEIGHTS,
) -> Case:
    """Draw a problem; every third one has fixed entries."""
    draw = Draw(seed)
    set_kind, gram_kind, weight_kind = draw.pick(sets), draw.pick(grams), draw.pick(weights)
    polytope, rule = make_set(set_kind, draw)
    gram = make_gram(gram_kind, rule.shape[1], draw)
    weight = make_weight(weight_kind, rule.shape, gram, draw)
    kept, pruned = fixed_entries(rule, draw) if draw.whole(0, 2) == 0 else (None, None)
    problem = MaskProblem(weight, gram, polytope, fixed_kept=kept, fixed_pruned=pruned)
    label = (
        f"seed {seed}: {polytope}, gram {gram_kind}, weight {weight_kind}, fixed {kept is not None, pruned is not None}"
    )
    return Case(problem, rule.fixing(kept, pruned), label)
