"""Figures by matplotlib as inline SVG whose text and lines take the colour of the page, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 3.7  # inches: so narrow that letters stay readable on a phone, where a figure is as wide as the screen
INK = "#010203"  # stands for the page's text colour, which SVG knows as currentColor
SERIES = ("#d97706", "#2563eb", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#64748b")
COLOURS = "viridis"  # readable in grey, by the colour-blind, and on either theme
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "relaxprune",
    "font.family": "sans-serif",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.facecolor": "none",
    "legend.edgecolor": INK,
    "legend.framealpha": 0.0,
    "text.parse_math": False,  # names are text: a dollar sign in one is no formula
}


@contextmanager
def drawing(height: float, rows: int = 1, cols: int = 1, **options: Any) -> Iterator[tuple[Figure, list[Any]]]:
    """Yield an empty figure and its axes, in the style of the page."""
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: no window, no state that outlives the figure

    style: Any = _STYLE  # the types of matplotlib list every name of a setting
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0, 0, 0.97, 1))  # the reader's font may be wider than the one that was measured
        axes = figure.subplots(rows, cols, squeeze=False, **options)
        yield figure, list(axes.flat)


def svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an SVG element; call it inside ``drawing``.

    Args:
        figure: what was drawn.
        name: distinguishes the identifiers inside from those of the page's other figures.
        label: the figure in words, for screen readers.
    """
    file = StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg ", f"<svg role='img' aria-label={quoteattr(label)} ", 1)


def shades(axes: Any, values: Sequence[Sequence[float]], low: float, high: float) -> Any:
    """Draw a table of numbers as shades, the first row at the top; NaN stays empty."""
    import numpy as np

    grid = np.ma.masked_invalid(np.asarray(values, dtype=float))
    mesh = axes.pcolormesh(grid, vmin=low, vmax=high, cmap=COLOURS, edgecolors="face", linewidth=0.1)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return mesh
