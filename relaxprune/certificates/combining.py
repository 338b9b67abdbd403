"""The best of several proofs, coupled block by coupled block."""

from __future__ import annotations

import torch
from torch import Tensor

from relaxprune.problems import Problem

from .underestimator import Bound
from .verify.claim import TangentProof

Candidate = tuple[TangentProof, Bound]


def best_of(problem: Problem, candidates: list[Candidate]) -> Candidate:
    """Return the proof that takes every coupled block from the best candidate, and its bound."""
    stacked = torch.stack([bound.block_lower_bound for _, bound in candidates])
    choice = stacked.argmax(dim=0)  # (blocks,)
    if bool((choice == choice[0]).all()):
        return candidates[int(choice[0])]
    line = problem.polytope.to_rows(choice, problem.shape[0]).squeeze(1)

    def per_block(values: list[Tensor]) -> Tensor:
        return torch.stack(values).gather(0, choice.unsqueeze(0)).squeeze(0)

    tightenings = [proof.tightening for proof, _ in candidates if proof.tightening is not None]
    uses = max(range(len(candidates)), key=lambda place: len(candidates[place][0].dense_rows))
    richest = candidates[uses][0]
    dense, cuts = line[richest.dense_rows] == uses, line[richest.cut_row] == uses
    point = candidates[0][0].point
    for place, (proof, _) in enumerate(candidates[1:], 1):
        point = torch.where((line == place).unsqueeze(1), proof.point, point)
    proof = TangentProof(
        point=point,
        scale=per_block([proof.scale for proof, _ in candidates]),
        row_method=torch.stack([proof.row_method for proof, _ in candidates]).gather(0, line.unsqueeze(0)).squeeze(0),
        tightening=tightenings[-1] if tightenings else None,
        dense_rows=richest.dense_rows[dense],
        dense_diagonal=richest.dense_diagonal[dense],
        dense_weight=richest.dense_weight[dense],
        cut_row=richest.cut_row[cuts],
        cut_index=richest.cut_index[cuts],
        cut_sign=richest.cut_sign[cuts],
        cut_multiplier=richest.cut_multiplier[cuts],
    )
    return proof, Bound(
        per_block([bound.block_lower_bound for _, bound in candidates]),
        per_block([bound.value for _, bound in candidates]),
        per_block([bound.row_rounding for _, bound in candidates]),
        max(bound.convexity_slack for _, bound in candidates),
        per_block([bound.scale for _, bound in candidates]),
    )
