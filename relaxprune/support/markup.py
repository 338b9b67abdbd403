"""Small pieces of HTML for notebooks and pages: escaped text, tables, sparklines. No style sheet, no dependency.

Colours are ``currentColor``, so that a piece follows the light or dark theme of the page it is put into.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 160, 28


def number(value: object) -> str:
    """Return a float with four significant digits, a dash for None, and anything else as text; not escaped."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def html_table(rows: Iterable[Sequence[object]], head: Sequence[object] = (), caption: str = "") -> str:
    """Return an HTML table; every cell is escaped, the first column is left-aligned, the others right-aligned."""
    lines = [f"<caption>{escape(caption)}</caption>"] if caption else []
    if head:
        lines.append(f"<thead>{_row(head, 'th')}</thead>")
    body = "".join(_row(row, "td") for row in rows)
    return f"<table>{''.join(lines)}<tbody>{body}</tbody></table>"


def sparkline(values: Sequence[float], label: str) -> str:
    """Return a line plot of values as inline SVG, without axes; "" for fewer than two.

    Args:
        values: finite numbers; long sequences are thinned out to means of neighbours.
        label: what is drawn, for people and for screen readers.
    """
    points = _thinned(values, _WIDTH // 2)
    if len(points) < 2:
        return ""
    low, span = min(points), (max(points) - min(points)) or 1.0
    step = (_WIDTH - 4) / (len(points) - 1)
    line = " ".join(
        f"{2 + index * step:.1f},{_HEIGHT - 3 - (_HEIGHT - 6) * (value - low) / span:.1f}"
        for index, value in enumerate(points)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}"><title>{escape(label)}</title>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def piece(title: str, rows: Iterable[Sequence[object]], lines: Iterable[tuple[str, Sequence[float]]] = ()) -> str:
    """Return what a notebook shows for an object: its name, a two-column table and labelled sparklines."""
    drawn = "".join(
        f"<div>{escape(label)}<br>{svg}</div>" for label, values in lines if (svg := sparkline(values, label))
    )
    return f"<div><strong>{escape(title)}</strong>{html_table(rows)}{drawn}</div>"


def _row(cells: Sequence[object], tag: str) -> str:
    """Return one row of a table."""
    first, *others = (escape(number(cell)) for cell in cells)
    rest = "".join(f'<{tag} style="text-align:right">{cell}</{tag}>' for cell in others)
    return f'<tr><{tag} style="text-align:left">{first}</{tag}>{rest}</tr>'


def _thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most ``most`` values, each the mean of neighbours."""
    if len(values) <= most:
        return [float(value) for value in values]
    edges = [index * len(values) // most for index in range(most + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
