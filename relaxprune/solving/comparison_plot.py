"""A comparison as a picture: what each solver proves and reaches, against time."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from relaxprune.problems import RelaxPruneError

if TYPE_CHECKING:
    from .comparison import Comparison

_LINES = ("-", "--", ":")
_MARKS = "osD^v<>PX*"


def require_matplotlib() -> None:
    """Raise RelaxPruneError unless matplotlib is installed; call it before the work to be plotted."""
    if find_spec("matplotlib") is None:
        raise RelaxPruneError(
            "plots and reports need matplotlib, which is not installed: pip install 'relaxprune[report]'"
        )


def plot_comparison(comparison: Comparison) -> bytes:
    """Draw a comparison that has curves.

    Left: how far the relaxation is from solved, (relaxed objective − bound) / relaxed objective. Middle: the relative
    gap of the mask, proven by the same solve. Right: how far the mask's objective is above the best one of all solvers.
    Each point is a whole solve with its own iteration budget; one-shot solvers are single points.

    Returns:
        A PNG file.

    Raises:
        RelaxPruneError: matplotlib is not installed, or no solver gave an answer.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # no pyplot: no window, no state that outlives the figure

    best = comparison.best_objective
    if best is None:
        raise RelaxPruneError("there is nothing to plot: no solver of the comparison gave an answer")
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, row in enumerate(row for row in comparison.rows if row.result is not None):
        seconds = [point.seconds for point in row.curve]
        # Each colour of the cycle returns with another line style and marker.
        style: dict[str, Any] = {
            "color": f"C{number % 10}",
            "marker": _MARKS[number % len(_MARKS)],
            "linestyle": _LINES[number // 10 % len(_LINES)],
            "markersize": 5,
            "label": row.solver,
        }
        middle.plot(seconds, [point.relative_gap for point in row.curve], **style)
        right.plot(seconds, [_share(point.objective - best, best) for point in row.curve], **style)
        solved = [
            (point.seconds, _share(max(0.0, point.relaxed_objective - point.lower_bound), point.relaxed_objective))
            for point in row.curve
            if point.relaxed_objective is not None
        ]
        if solved:
            left.plot(*zip(*solved, strict=True), **style)
    _axes(left, "relative gap of the relaxation", smallest=1e-8)
    _axes(middle, "relative gap of the mask, proven by the solve")
    _axes(right, "objective above the best one, relative", smallest=1e-4)
    handles, labels = middle.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", title="solver")
    rows, cols = comparison.problem["shape"]
    figure.suptitle(f"{rows} x {cols}, {_describe(comparison.problem['polytope'])}", fontsize=11)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _axes(axes: Any, label: str, smallest: float | None = None) -> None:
    """Scale and label the axes of one panel: linear up to ``smallest``, to show 0, and logarithmic above."""
    axes.set_xscale("log")
    if smallest is not None:
        axes.set_yscale("symlog", linthresh=smallest)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds, solver and polish")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def _share(excess: float, best: float) -> float:
    """Return an excess over the best objective, relative to it."""
    return excess / abs(best) if best else excess


def _describe(polytope: dict[str, Any]) -> str:
    """Return the set in a few words."""
    return ", ".join(f"{key} {value}" for key, value in polytope.items() if value is not False)
