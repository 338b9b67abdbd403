"""Where the matrices of a model are that read the residual stream or write to it, and how their values turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from relaxprune.models.layer_kinds import layer_kind

_CHUNK = 2**24  # entries that are turned in float64 at once


@dataclass(frozen=True)
class Place:
    """A matrix of a model, or a stack of them, such as fused experts have.

    Attributes:
        module: name of the module that owns it.
        local: name of the parameter there.
        transposed: whether it is stored as (..., inputs, outputs).
        bias: name of the parameter that is added to what it puts out; None for none.
    """

    module: str
    local: str = "weight"
    transposed: bool = False
    bias: str | None = None

    def inside(self, block: str) -> Place:
        """Return the place of the same matrix in the model, of one in a block."""
        return replace(self, module=f"{block}.{self.module}" if self.module else block)

    def parameter(self, root: nn.Module) -> nn.Parameter:
        """Return the parameter as it is stored."""
        found = getattr(root.get_submodule(self.module), self.local)
        assert isinstance(found, nn.Parameter)
        return found

    def bias_of(self, root: nn.Module) -> nn.Parameter | None:
        """Return the parameter of the bias, (..., outputs); None for none."""
        return None if self.bias is None else getattr(root.get_submodule(self.module), self.bias)

    def shape(self, root: nn.Module) -> tuple[int, int]:
        """Return (rows, cols) = (outputs, inputs) of each matrix."""
        *_, first, second = self.parameter(root).shape
        return (second, first) if self.transposed else (first, second)

    def values(self, root: nn.Module) -> Tensor:
        """Return the matrix as (..., rows, cols), a view."""
        stored = self.parameter(root).detach()
        return stored.mT if self.transposed else stored


def matrices_of(name: str, module: nn.Module) -> list[Place]:
    """Return the matrices that a module itself owns, other than an embedding's."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return []
    kind = layer_kind(module)
    if kind in ("Linear", "Conv1D"):
        return [Place(name, "weight", kind == "Conv1D", "bias" if getattr(module, "bias", None) is not None else None)]
    own = dict(module.named_parameters(recurse=False))
    biases = {f"{local}_bias" for local in own} & own.keys()
    transposed = bool(getattr(module, "is_transposed", False))
    return [
        Place(name, local, transposed and parameter.dim() == 3, f"{local}_bias" if f"{local}_bias" in biases else None)
        for local, parameter in own.items()
        if parameter.dim() in (2, 3) and local not in biases
    ]


@dataclass(frozen=True, eq=False)
class Turn:
    """What a rotation makes of one matrix: values (..., rows, cols) become Lᵀ · values · Diag(gain) · R.

    Attributes:
        rows: L, (rows, rows) float64; None to leave the outputs as they are.
        gain: (cols,) float64, multiplied into the columns first; None for ones.
        cols: R, (cols, cols) float64; None to leave the inputs as they are.
    """

    rows: Tensor | None = None
    gain: Tensor | None = None
    cols: Tensor | None = None

    def of(self, values: Tensor) -> Tensor:
        """Return the new values in float64, of (..., rows, cols)."""
        new = values.to(torch.float64)
        if self.gain is not None:
            new = new * self.gain
        if self.cols is not None:
            new = new @ self.cols
        return new if self.rows is None else self.rows.mT @ new

    def of_bias(self, bias: Tensor) -> Tensor:
        """Return the new values of a bias, (..., rows), in float64."""
        new = bias.to(torch.float64)
        return new if self.rows is None else new @ self.rows


def write(parameter: Tensor, values: Tensor) -> None:
    """Put new values into a parameter: rounded once, to the dtype that it has."""
    with torch.no_grad():
        parameter.copy_(values)


def turn_rows(source: Tensor, target: Tensor, turn: Turn) -> None:
    """Write into ``target`` what a turn of the columns makes of ``source``, both (rows, cols), a part at a time."""
    for rows in _parts(source):
        write(target[rows], turn.of(source[rows]))


def _parts(matrix: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        yield slice(start, start + step)
