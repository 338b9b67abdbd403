"""The figures of a report, each from the plain values of ``run_content`` to SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .content import PHASES, mean
from .drawing import COLOURS, INK, SERIES, drawing, shades, svg

Layers = Sequence[Mapping[str, Any]]
_PHASE_NAMES = {
    "wanda": "Wanda",
    "relaxed": "relaxed",
    "unrounded": "unrounded",
    "rounded": "rounded",
    "kept": "before refit",
    "final": "final",
}
_MOST_TICKS = 16
_FEW_CELLS = 24  # of a heat map: their numbers are written into them


def grid_of(layers: Layers, key: str) -> tuple[list[int], list[str], list[list[float]]]:
    """Return blocks, roles, and one number for each pair: the mean over its layers, NaN if it has none."""
    blocks = sorted({layer["block"] for layer in layers})
    roles = list(dict.fromkeys(layer["role"] for layer in layers))
    found: dict[tuple[int, str], list[float]] = {}
    for layer in layers:
        if layer[key] is not None:
            found.setdefault((layer["block"], layer["role"]), []).append(layer[key])
    values = [[mean(found[block, role]) if (block, role) in found else math.nan for role in roles] for block in blocks]
    return blocks, roles, values


def heat_map(layers: Layers, key: str, name: str, label: str, high: float | None = None) -> str:
    """Draw one number of every layer by block (down) and role (across)."""
    blocks, roles, values = grid_of(layers, key)
    seen = [value for row in values for value in row if not math.isnan(value)]
    low, top = min([0.0, *seen]), high if high is not None else max(seen, default=1.0) or 1.0
    with drawing(1.5 + 0.13 * max(len(blocks), 6)) as (figure, (axes,)):
        mesh = shades(axes, values, low, top)
        axes.set_xticks([index + 0.5 for index in range(len(roles))], [short(role) for role in roles], rotation=60)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
        step = -(-len(blocks) // _MOST_TICKS)
        axes.set_yticks([index + 0.5 for index in range(0, len(blocks), step)], blocks[::step])
        axes.set_ylabel("block")
        if len(blocks) * len(roles) <= _FEW_CELLS:
            for row, line in enumerate(values):
                for place, value in enumerate(line):
                    if not math.isnan(value):
                        dark = value - low < 0.6 * (top - low)
                        colour = "white" if dark else "black"
                        axes.text(place + 0.5, row + 0.5, f"{value:.3g}", ha="center", va="center", color=colour)
        bar = figure.colorbar(mesh, ax=axes, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        return svg(figure, name, label)


def role_bars(series: Mapping[str, Mapping[str, float]], name: str, label: str, axis: str) -> str:
    """Draw grouped bars: for each role (down) one bar of each series."""
    roles = list(dict.fromkeys(role for values in series.values() for role in values))
    thick = 0.8 / len(series)
    with drawing(0.9 + 0.16 * (len(series) + 0.8) * len(roles)) as (figure, (axes,)):
        for number, (title, values) in enumerate(series.items()):
            where = [place + thick * (number - (len(series) - 1) / 2) for place in range(len(roles))]
            colour = SERIES[number % len(SERIES)]
            axes.barh(where, [values.get(role, 0.0) for role in roles], thick * 0.9, color=colour, label=short(title))
        axes.set_yticks(range(len(roles)), [short(role) for role in roles])
        axes.invert_yaxis()
        axes.set_xlabel(axis)
        axes.locator_params(axis="x", nbins=5)
        plain(axes)
        figure.legend(loc="outside upper center", ncols=min(3, len(series)), frameon=False)
        return svg(figure, name, label)


def phase_lines(layers: Layers, name: str) -> str:
    """Draw each role's objective over Wanda's, from phase to phase, and its bound as a dotted line."""
    roles = list(dict.fromkeys(layer["role"] for layer in layers))
    steps = [phase for phase in PHASES[:-1] if any(layer["phases"][phase] is not None for layer in layers)]
    with drawing(3.4) as (figure, (axes,)):
        for number, role in enumerate(roles):
            mine = [layer["phases"] for layer in layers if layer["role"] == role]
            colour = SERIES[number % len(SERIES)]
            points = [
                (place, mean(item[phase] for item in mine if item[phase] is not None))
                for place, phase in enumerate(steps)
                if any(item[phase] is not None for item in mine)
            ]
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=short(role))
            bound = [item["bound"] for item in mine if item["bound"] is not None]
            if bound:
                axes.axhline(max(0.0, mean(bound)), color=colour, linestyle=":", linewidth=0.9)
        axes.set_xticks(range(len(steps)), [_PHASE_NAMES[phase] for phase in steps])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("objective / Wanda's")
        plain(axes)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        return svg(figure, name, "Objective at the end of each phase over that of Wanda's mask, mean by role")


def density_map(layers: Layers, key: str, name: str, role: str) -> str:
    """Draw the shares kept of one role's rows, columns or heads (across), a line of shades for each block (down)."""
    chosen = [layer for layer in layers if layer["role"] == role and layer["density"][key]]
    longest = max(len(layer["density"][key]) for layer in chosen)
    values = [[*shares, *[math.nan] * (longest - len(shares))] for shares in (item["density"][key] for item in chosen)]
    seen = [value for row in values for value in row if not math.isnan(value)]
    with drawing(0.75 + 0.05 * max(len(values), 8)) as (figure, (axes,)):
        mesh = shades(axes, values, min(seen), max(seen) if max(seen) > min(seen) else min(seen) + 1e-9)
        axes.set_title(short(role), loc="left", fontsize=8)
        step = -(-len(chosen) // 6)
        axes.set_yticks([row + 0.5 for row in range(0, len(chosen), step)], [item["block"] for item in chosen][::step])
        axes.set_xticks([])
        if key == "heads":
            every = -(-longest // _MOST_TICKS)
            axes.set_xticks([index + 0.5 for index in range(0, longest, every)], range(0, longest, every))
        bar = figure.colorbar(mesh, ax=axes, aspect=12, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.locator_params(nbins=4)
        return svg(figure, name, f"Share kept, {key} of {role} by block")


def stage_bars(seconds: Mapping[str, Mapping[str, float]], name: str) -> str:
    """Draw the seconds of each stage of one or several runs."""
    without = {run: {key: value for key, value in stages.items() if key != "total"} for run, stages in seconds.items()}
    return role_bars(without, name, "Seconds by stage", "seconds")


def block_bars(blocks: Sequence[Mapping[str, float]], name: str) -> str:
    """Draw each block's seconds of solving and of certifying."""
    with drawing(2.2) as (figure, (axes,)):
        where = [item["block"] for item in blocks]
        solve = [item["solve"] for item in blocks]
        certify = [item["certify"] for item in blocks]
        axes.bar(where, solve, color=SERIES[1], label="solve")
        if any(certify):
            axes.bar(where, certify, bottom=solve, color=SERIES[0], label="certify")
            figure.legend(loc="outside upper center", ncols=2, frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(min(where) - 1, max(where) + 1)
        axes.set_xlabel("block")
        axes.set_ylabel("seconds")
        plain(axes)
        return svg(figure, name, "Seconds of solving and certifying by block")


def perplexity_bars(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Draw perplexities measured on the same text; if methods repeat, their bars also name the models."""
    methods = [row["method"] for row in rows]
    names = [
        item if methods.count(item) == 1 else f"{item}, {row['model']}" for item, row in zip(methods, rows, strict=True)
    ]
    with drawing(0.7 + 0.28 * len(rows)) as (figure, (axes,)):
        bars = axes.barh(range(len(rows)), [row["perplexity"] for row in rows], color=SERIES[1])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set_yticks(range(len(rows)), [short(item) for item in names])
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_xlabel("perplexity, lower is better")
        plain(axes)
        return svg(figure, name, "Perplexity by method")


def plain(axes: Any) -> None:
    """Keep only the lines of an axes that help to read it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def scatter(names: Sequence[str], errors: Sequence[Sequence[float]], name: str) -> str:
    """Draw every layer's relative error in the first run (across) against that in the others (up), both logarithmic.

    Args:
        names: of the runs.
        errors: for each layer one number per run; layers with a number that is not positive are left out.
        name: of the figure.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [row for row in errors if min(row) > 0]
    with drawing(3.6) as (figure, (axes,)):
        for place in range(1, len(names)):
            points = [(row[0], row[place]) for row in shown]
            style = {"color": SERIES[place % len(SERIES)], "marker": "osD^v<>P"[place % 8], "alpha": 0.8}
            axes.plot(*zip(*points, strict=True), linestyle="none", markersize=3.5, label=short(names[place]), **style)
        ends = [min(map(min, shown)), max(map(max, shown))]
        axes.plot(ends, ends, color=INK, linewidth=0.8, alpha=0.5, zorder=0)
        few = ends[1] < 30 * ends[0]
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"relative error, {short(names[0])}")
        axes.set_ylabel("relative error, the others")
        plain(axes)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        return svg(figure, name, f"Relative error of {len(shown)} layers, the first run against the others")


def run_bars(values: Mapping[str, float], name: str, label: str) -> str:
    """Draw one number per run."""
    with drawing(0.7 + 0.26 * len(values)) as (figure, (axes,)):
        colours = [SERIES[place % len(SERIES)] for place in range(len(values))]
        bars = axes.barh(range(len(values)), list(values.values()), color=colours)
        axes.bar_label(bars, fmt="%.4g", padding=3)
        axes.set_yticks(range(len(values)), [short(run) for run in values])
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label)
        plain(axes)
        return svg(figure, name, f"{label} by run")


def mask_picture(shares: Sequence[Sequence[float]], rows: int, cols: int, name: str) -> str:
    """Draw which share of the weights a mask keeps, in cells of a grid: outputs down, inputs across."""
    low, high = min(map(min, shares)), max(map(max, shares))
    with drawing(2.6) as (figure, (axes,)):
        image = axes.imshow(shares, extent=(0, cols, rows, 0), aspect="auto", cmap=COLOURS, interpolation="nearest")
        image.set_clim(low, high if high > low else low + 1e-9)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True, nbins=5)
        axes.set_xlabel("input")
        axes.set_ylabel("output")
        bar = figure.colorbar(image, ax=axes, aspect=20, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.locator_params(nbins=4)
        return svg(figure, name, f"Share kept in the cells of a grid, {low:.3g} to {high:.3g}")


def short(text: object, most: int = 22) -> str:
    """Return a name short enough for a plot, in printable ASCII: what a plot's font may lack is spelled out."""
    clean = str(text).encode("ascii", "backslashreplace").decode()
    clean = "".join(letter if letter.isprintable() else " " for letter in clean)
    return clean if len(clean) <= most else f"{clean[: most - 3]}..."
