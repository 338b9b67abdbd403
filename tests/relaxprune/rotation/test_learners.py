"""What learners find is orthogonal, lowers what they say, and is found again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relaxprune import RelaxPruneError
from relaxprune.options import Target
from relaxprune.rotation.learners.base import Lesson, ReadMatrix, Touched, WrittenMatrix
from relaxprune.rotation.learners.registry import learner_names, make_learner

WIDTH = 16
TARGETS = (Target(sparsity=0.5), Target(pattern="2:4"))


def lesson(target: Target, dtype: torch.dtype = torch.float64) -> Lesson:
    """Return three blocks of random matrices and Grams."""
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    blocks = []
    for _ in range(3):
        root = numbers(WIDTH, 4 * WIDTH)
        gram = root @ root.T / (4 * WIDTH)
        reads = (ReadMatrix.of(numbers(8, WIDTH), gram), ReadMatrix.of(numbers(2, 8, WIDTH), gram))
        blocks.append(Touched(reads, (WrittenMatrix.of(numbers(WIDTH, 12), numbers(12).square()),)))
    return Lesson(blocks=blocks, width=WIDTH, target=target)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("name", learner_names())
def test_what_is_learned(name: str, target: Target) -> None:
    learner = make_learner(name, **({} if name == "pca" else {"steps": 12}))
    seen: list[int] = []
    asked = lesson(target)
    found = learner.learn(Lesson(blocks=asked.blocks, width=WIDTH, target=target, on_step=lambda n, _: seen.append(n)))
    error = found.rotation.T @ found.rotation - torch.eye(WIDTH, dtype=torch.float64)
    assert error.abs().max() < 1e-12
    assert found.ratio < 1
    assert seen == ([] if name == "pca" else list(range(1, 13)))
    again = learner.learn(lesson(target))
    assert torch.equal(again.rotation, found.rotation)


def test_what_error_lowers_is_what_masks_lose() -> None:
    found = make_learner("error", steps=12).learn(lesson(TARGETS[1]))
    ratios = []
    for touched in lesson(TARGETS[1]).blocks:
        for rotation in (found.rotation, torch.eye(WIDTH, dtype=torch.float64)):
            pairs = [(one.weight.flatten(0, -2) @ rotation, rotation.T @ one.gram @ rotation) for one in touched.reads]
            pairs += [(rotation.T @ one.weight, torch.diag(one.energy)) for one in touched.writes]
            ratios.append(
                [
                    (weight.square() * gram.diagonal()).view(len(weight), -1, 4).sort(dim=2).values[..., :2].sum()
                    for weight, gram in pairs
                ]
            )
    means = [sum(a / b for a, b in zip(ratios[i], ratios[i + 1], strict=True)) / 3 for i in (0, 2, 4)]
    assert found.ratio == pytest.approx(float(sum(means)) / 3, rel=1e-9)


def test_axes_make_the_gram_diagonal() -> None:
    asked = lesson(TARGETS[0])
    alone = Lesson(blocks=[Touched(asked.blocks[0].reads, ())], width=WIDTH, target=TARGETS[0])
    found = make_learner("pca").learn(alone)
    turned = found.rotation.T @ asked.blocks[0].reads[0].gram @ found.rotation
    assert (turned - torch.diag(turned.diagonal())).norm() < 1e-12 * turned.norm()
    assert found.ratio < 1e-12 and bool((turned.diagonal().diff() <= 0).all())


def test_a_basis_that_is_no_better_is_not_taken() -> None:
    """Equal Grams and one weight in each row: nothing is lost as it is."""
    reads = (ReadMatrix.of(torch.eye(WIDTH, dtype=torch.float64), torch.eye(WIDTH, dtype=torch.float64)),)
    asked = Lesson(blocks=[Touched(reads, ())], width=WIDTH, target=TARGETS[0])
    found = make_learner("entropy", steps=5).learn(asked)
    assert torch.equal(found.rotation, torch.eye(WIDTH, dtype=torch.float64)) and found.ratio == 1


def test_refusals() -> None:
    with pytest.raises(RelaxPruneError, match="has no option 'step'; did you mean"):
        make_learner("error", step=1)
    with pytest.raises(RelaxPruneError, match="rate must be"):
        make_learner("entropy", rate=-1.0)
    with pytest.raises(RelaxPruneError, match="does not fit"):
        make_learner("error").learn(lesson(Target(pattern="3:7")))
