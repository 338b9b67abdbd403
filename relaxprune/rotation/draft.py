"""New values of parameters in float64, written to the model together and rounded once."""

from __future__ import annotations

from torch import Tensor, nn

from .places import Place, Turn, write
from .value_heads import ValuePath


class Draft:
    """The parameters of one block that are about to change.

    Args:
        block: the module that the names of places are of.
    """

    def __init__(self, block: nn.Module) -> None:
        """Start with nothing changed."""
        self._block = block
        self._matrices: dict[Place, Tensor] = {}
        self._biases: dict[Place, Tensor] = {}
        self._filled: list[tuple[Tensor, float]] = []

    def turn(self, place: Place, turn: Turn) -> None:
        """Turn a matrix, and the bias of what it puts out."""
        self._matrices[place] = turn.of(self.matrix(place))
        if turn.rows is not None and (bias := self._bias(place)) is not None:
            self._biases[place] = turn.of_bias(bias)

    def turn_heads(self, producer: Place, consumer: Place, path: ValuePath, rotations: list[Tensor]) -> None:
        """Rotate the value heads between two layers."""
        self._matrices[producer] = path.turned(self.matrix(producer), rotations)
        if (bias := self._bias(producer)) is not None:
            self._biases[producer] = path.turned(bias, rotations)
        self._matrices[consumer] = path.turned_columns(self.matrix(consumer), rotations)

    def fill(self, parameter: Tensor, value: float) -> None:
        """Give all entries of a parameter one value."""
        self._filled.append((parameter, value))

    def write(self) -> None:
        """Write all new values, each rounded once to the dtype of its parameter."""
        for place, values in self._matrices.items():
            write(place.values(self._block), values)
        for place, values in self._biases.items():
            stored = place.bias_of(self._block)
            assert stored is not None  # it was read
            write(stored, values)
        for parameter, value in self._filled:
            parameter.data.fill_(value)

    def matrix(self, place: Place) -> Tensor:
        """Return the values as drafted so far, (..., rows, cols) float64."""
        return self._matrices[place] if place in self._matrices else place.values(self._block).double()

    def _bias(self, place: Place) -> Tensor | None:
        """Return the bias as drafted so far, (..., rows) float64; None for none."""
        if place in self._biases:
            return self._biases[place]
        stored = place.bias_of(self._block)
        return None if stored is None else stored.detach().double()
