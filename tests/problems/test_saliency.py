from __future__ import annotations

import pytest
import torch

from relaxprune import RelaxPruneError
from relaxprune.problems.saliency import SALIENCIES, saliency

WEIGHT = [[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]]
DIAGONAL = [4.0, 9.0, 16.0]


def by_hand(name: str, power: float = 0.5) -> list[list[float]]:
    columns = [sum(abs(row[j]) for row in WEIGHT) for j in range(3)]
    scores = []
    for row in WEIGHT:
        total = sum(abs(value) for value in row)
        line = []
        for j, value in enumerate(row):
            if name == "magnitude":
                line.append(abs(value))
            elif name == "wanda":
                line.append(abs(value) * DIAGONAL[j] ** 0.5)
            else:
                share = abs(value) / columns[j] if columns[j] else 0.0
                line.append((share + abs(value) / total) * DIAGONAL[j] ** (power / 2))
        scores.append(line)
    return scores


@pytest.mark.parametrize("name", SALIENCIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_scores_are_those_of_the_papers(name, dtype, device):
    weight = torch.tensor(WEIGHT, dtype=dtype, device=device)
    score = saliency(name, weight, torch.tensor(DIAGONAL, device=device))
    assert score.dtype == torch.float64 and score.device == weight.device
    assert torch.allclose(score.cpu(), torch.tensor(by_hand(name), dtype=torch.float64), rtol=1e-12)


def test_the_power_of_ria():
    score = saliency("ria", torch.tensor(WEIGHT), torch.tensor(DIAGONAL), power=1.0)
    assert torch.allclose(score, torch.tensor(by_hand("ria", 1.0), dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("name", SALIENCIES)
def test_zero_rows_columns_and_dead_inputs_score_a_number(name):
    score = saliency(name, torch.zeros(3, 4), torch.zeros(4))
    assert bool((score == 0).all())


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(RelaxPruneError, match=r"saliency must be one of magnitude.*did you mean 'wanda'"):
        saliency("wandda", torch.ones(2, 2), torch.ones(2))
