"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def table(lines: Sequence[Sequence[object]]) -> list[str]:
    """Return lines with aligned columns, the first left and the others right; floats get four decimals."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = []
    for first, *others in cells:
        padded = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        texts.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return texts
