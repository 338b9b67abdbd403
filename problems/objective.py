"""What a layer minimises, as a value of its own: the metric of its error, row by row, and a linear term."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from .checks import check_floats
from .errors import RelaxPruneError
from .gram import Gram, PsdProof
from .objective_parts import Grams as Grams
from .objective_parts import check_tensor, prepared_grams, row_numbers
from .precision import product64
from .tightening import largest_tightening


class Objective:
    """f(V) = Σ_i r_i (G_i + F_iᵀ F_i) r_iᵀ + ⟨linear, V − W⟩ over weights V, with r_i row i of R = W − V.

    A Gram alone, the usual case, is the mean squared change of the layer's outputs. Groups of rows may each have their
    own, a row may add a low-rank term, such as the gradients of the loss in that row for some windows of text (a Fisher
    term, as in MOONSHOT), and a linear term moves the target of V away from W: ``towards`` makes it from a target, and
    the gradient of a model's loss at W is one as it stands. ``outputs`` S puts tr(S R G Rᵀ) in the place of
    Σ r_i G r_iᵀ: with the second moment of the loss's gradient at the outputs, an error counts as it moves the loss. It
    couples the rows.

    Args:
        gram: (cols, cols), as a tensor or a prepared ``Gram``; or several, as a sequence or (groups, cols, cols).
        row_groups: (rows,) integers, the Gram of each row by number; None divides the rows evenly, in order.
        fisher: (rows, rank, cols) F, any float dtype, or None; a factor √λ on it puts λ before the term.
        linear: (rows, cols), any float dtype, or None.
        outputs: (rows, rows), S, symmetric positive semidefinite up to float noise, or None; with one Gram only.
        name: name of the Gram in error messages.

    Raises:
        RelaxPruneError: a Gram that cannot be right; the rest is checked by the problem, which has the weights.
    """

    def __init__(
        self,
        gram: Grams,
        *,
        row_groups: Tensor | None = None,
        fisher: Tensor | None = None,
        linear: Tensor | None = None,
        outputs: Tensor | Gram | None = None,
        name: str = "gram",
    ) -> None:
        """Prepare the Grams; see the class."""
        self.grams = prepared_grams(gram, name)
        self.row_groups, self.fisher, self.linear = row_groups, fisher, linear
        self.outputs = outputs if outputs is None or isinstance(outputs, Gram) else Gram(outputs, "outputs")
        if self.outputs is not None and len(self.grams) > 1:
            raise RelaxPruneError(f"outputs needs one Gram for all rows, got {len(self.grams)}")

    @classmethod
    def of(cls, given: Grams | Objective, name: str) -> Objective:
        """Return an objective as it is, and anything else as the Gram that it is."""
        return given if isinstance(given, Objective) else cls(given, name=name)

    @classmethod
    def towards(cls, target: Tensor, weight: Tensor, gram: Grams | Objective) -> Objective:
        """Return the objective of V's distance from a target T, up to a constant: tr((T − V) H (T − V)ᵀ).

        Args:
            target: (rows, cols) floats.
            weight: (rows, cols) W.
            gram: H, which has no linear term yet.

        Raises:
            RelaxPruneError: sizes, dtypes or values that cannot be right, or a linear term.
        """
        plain = cls.of(gram, "gram")
        if plain.linear is not None:
            raise RelaxPruneError("gram must be an objective without a linear term: the target gives it one")
        check_floats("weight", weight)
        check_tensor("target", target, tuple(weight.shape), weight.device)
        moved = copy(plain.fitted(weight))
        moved.linear = -2 * moved.product(target.to(torch.float64) - weight.to(torch.float64))
        return moved

    def fitted(self, weight: Tensor, names: tuple[str, str] = ("weight", "gram")) -> Self:
        """Return the objective of a weight (rows, cols), everything checked to fit it.

        Args:
            weight: the weight.
            names: what sentences call the weight and a Gram.

        Raises:
            RelaxPruneError: something does not fit.
        """
        rows, cols = weight.shape
        name, shared = names
        for number, gram in enumerate(self.grams):
            own = shared if len(self.grams) == 1 else f"{shared}[{number}]"
            if gram.cols != cols:
                raise RelaxPruneError(f"{own} is {gram.cols} x {gram.cols}, but {name} has {cols} columns")
            if gram.matrix.device != weight.device:
                raise RelaxPruneError(f"{own} is on {gram.matrix.device}, but {name} is on {weight.device}")
        if self.plain:
            return self
        if self.outputs is not None and (self.outputs.cols != rows or self.outputs.matrix.device != weight.device):
            size, where = self.outputs.cols, self.outputs.matrix.device
            raise RelaxPruneError(f"outputs must be {rows} x {rows} on {weight.device}, got {size} x {size} on {where}")
        fitted = copy(self)
        if self.fisher is not None:
            check_floats("fisher", self.fisher, (3,), f"({rows}, rank, {cols})")
            check_tensor("fisher", self.fisher, (rows, self.rank, cols), weight.device)
            fitted.fisher = self.fisher.detach()
        if self.linear is not None:
            check_tensor("linear", self.linear, (rows, cols), weight.device)
            fitted.linear = self.linear.detach()
        fitted.row_groups = row_numbers(self.row_groups, len(self.grams), rows)
        return fitted

    def check_blocks(self, height: int) -> None:
        """Raise RelaxPruneError if rows of a coupled block, ``height`` rows that share counts, have different Grams."""
        blocks = None if self.row_groups is None else self.row_groups.view(-1, height)
        if blocks is not None and bool((blocks != blocks[:, :1]).any()):
            raise RelaxPruneError(
                f"rows that share a count must share a Gram, but some of the {height} rows of a coupled block have "
                "different ones; give every row a count of its own, or all one Gram"
            )

    @property
    def plain(self) -> bool:
        """Whether there is one Gram for all rows and nothing beside it."""
        return len(self.grams) == 1 and not self.own_tensors()

    @property
    def rank(self) -> int:
        """The rank of each row's own term, 0 for none."""
        return 0 if self.fisher is None else int(self.fisher.shape[1])

    @cached_property
    def gram(self) -> Gram:
        """The one Gram of all rows.

        Raises:
            RelaxPruneError: rows have different ones.
        """
        numbers = [0] if self.row_groups is None else self.row_groups.unique().tolist()
        if len(numbers) > 1:
            raise RelaxPruneError(f"objective has {len(numbers)} Grams, each for some rows, where one is needed")
        return self.grams[numbers[0]]

    def own_tensors(self) -> dict[str, Tensor]:
        """Return what there is beside the Grams, by name."""
        outputs = None if self.outputs is None else self.outputs.matrix
        own = {"fisher": self.fisher, "linear": self.linear, "row_groups": self.row_groups, "outputs": outputs}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Return all that the objective is made of, by name; Grams have numbers where there are several."""
        several = len(self.grams) > 1
        grams = {f"gram {number}" if several else "gram": gram.matrix for number, gram in enumerate(self.grams)}
        return {**grams, **self.own_tensors()}

    @property
    def proof(self) -> PsdProof:
        """What is proven of all Grams together: every row's Q + shift · Diag(w² diag(G)) is positive semidefinite."""
        worst = max((gram.proof for gram in self.grams), key=lambda proof: (proof.shift, not proof.psd))
        if self.outputs is None or (worst.psd and self.outputs.proof.psd):
            return worst
        # From S + σ Diag(S) ⪰ 0 and G + τ Diag(G) ⪰ 0, with S ⪯ rows · Diag(S) and G ⪯ cols · Diag(G), nearly.
        sigma, tau, rows, cols = self.outputs.proof.shift, worst.shift, self.outputs.cols, self.gram.cols
        shift = 2 * (sigma * cols * (1 + cols * tau) + tau * rows * (1 + rows * sigma) + sigma * tau)
        return replace(worst, shift=shift, psd=False)

    def rows(self, index: slice | Tensor) -> Objective:
        """Return the objective of some rows."""
        if self.plain or (self.outputs is not None and isinstance(index, slice) and self._whole(index)):
            return self
        part = copy(self)
        part.outputs = None if self.outputs is None else Gram(self.outputs.matrix[index][:, index], "outputs")
        part.__dict__.pop("gram", None)
        part.fisher = None if self.fisher is None else self.fisher[index]
        part.linear = None if self.linear is None else self.linear[index]
        if self.row_groups is not None:
            part.row_groups = self.row_groups[index.cpu() if isinstance(index, Tensor) else index]
        return part

    def _whole(self, rows: slice) -> bool:
        """Return whether a slice takes all rows of ``outputs``."""
        return self.outputs is not None and rows.indices(self.outputs.cols) == (0, self.outputs.cols, 1)

    def runs(self, rows: int) -> list[slice]:
        """Return the runs of consecutive rows that share a Gram."""
        if self.row_groups is None:
            return [slice(0, rows)]
        ends = [*((self.row_groups[1:] != self.row_groups[:-1]).nonzero().squeeze(1) + 1).tolist(), rows]
        return [slice(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]

    def product(self, left: Tensor) -> Tensor:
        """Return the rows of ``left`` (rows, cols) times their G_i + F_iᵀ F_i, or S left G + …, in float64."""
        if self.row_groups is None:
            out = product64(left, self.gram.matrix)
        else:
            runs = self.runs(len(left))
            out = torch.cat([product64(left[run], self.rows(run).gram.matrix) for run in runs])
        if self.outputs is not None:
            out = self.outputs.matrix.to(torch.float64) @ out
        if self.fisher is not None:
            fisher = self.fisher.to(torch.float64)
            inner = torch.bmm(fisher, left.to(torch.float64).unsqueeze(2))
            out = out + torch.bmm(inner.transpose(1, 2), fisher).squeeze(1)
        return out

    def value(self, error: Tensor) -> Tensor:
        """Return what each row adds to f at R = W − V (rows, cols): (rows,) float64."""
        wide = error.to(torch.float64)
        total = (wide * self.product(wide)).sum(dim=1)
        return total if self.linear is None else total - (wide * self.linear.to(torch.float64)).sum(dim=1)

    def gram_diagonal(self) -> Tensor:
        """Return the diagonals of the rows' Grams, float64: (cols,), or (rows, cols) where rows differ; S_ii G_jj."""
        if self.row_groups is None:
            diagonal = self.gram.diagonal.to(torch.float64)
            return diagonal if self.outputs is None else self.outputs.diagonal.to(torch.float64).outer(diagonal)
        every = torch.stack([gram.diagonal.to(torch.float64) for gram in self.grams])
        return every[self.row_groups.to(every.device)]

    def diagonal(self) -> Tensor:
        """Return the diagonals of G_i + F_iᵀ F_i, float64: (cols,), or (rows, cols) where rows differ."""
        shared = self.gram_diagonal()
        return shared if self.fisher is None else shared + self.fisher.to(torch.float64).square().sum(dim=1)

    def row_scale(self) -> Tensor | float:
        """Return the square roots of S_ii, (rows, 1) float64, or 1."""
        return 1.0 if self.outputs is None else self.outputs.diagonal.to(torch.float64).sqrt().unsqueeze(1)

    def matrix(self, row: int) -> Tensor:
        """Return G_i + F_iᵀ F_i of one row, with S_ii before the Gram, (cols, cols) float64."""
        part = self.rows(slice(row, row + 1))
        matrix = part.gram.matrix.to(torch.float64)
        matrix = matrix if part.outputs is None else matrix * float(part.outputs.diagonal)
        if part.fisher is None:
            return matrix
        own = part.fisher[0].to(torch.float64)
        return matrix + own.T @ own

    def largest_tightening(self, weights: Tensor | None = None) -> Tensor:
        """Return one tightening for all rows, (cols,): see ``largest_tightening``; it multiplies w² diag(G_i).

        Raises:
            RelaxPruneError: ``outputs`` couples rows.
        """
        self.refuse_coupled("tightening by a diagonal")
        return self._least([largest_tightening(gram, weights) for gram in self.grams])

    def proven_tightening(self, tightening: Tensor) -> Tensor:
        """Lower a tightening (cols,) until it is proven for every Gram: see ``Gram.proven_tightening``."""
        return self._least([gram.proven_tightening(tightening) for gram in self.grams])

    def refuse_coupled(self, what: str) -> None:
        """Raise RelaxPruneError if ``outputs`` couples rows, for ``what`` looks at one row at a time."""
        if self.outputs is not None:
            raise RelaxPruneError(f"{what} looks at one row at a time, but outputs couples rows: leave it out")

    def _least(self, tightenings: list[Tensor]) -> Tensor:
        """Return the least of the Grams' tightenings, which suits each: less than a proven one is proven too."""
        if len(tightenings) == 1:
            return tightenings[0]
        least = torch.stack(
            [torch.where(gram.diagonal > 0, own, torch.inf) for gram, own in zip(self.grams, tightenings, strict=True)]
        ).amin(dim=0)
        return torch.where(torch.isinf(least), 0.0, least)

    def __repr__(self) -> str:
        """Name the parts."""
        parts = [f"{len(self.grams)} Grams" if len(self.grams) > 1 else "one Gram"]
        parts += [f"a Fisher term of rank {self.rank}"] if self.fisher is not None else []
        parts += ["a linear term"] if self.linear is not None else []
        parts += ["coupled rows"] if self.outputs is not None else []
        return f"Objective({', '.join(parts)})"
