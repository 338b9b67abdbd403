"""Draw the picture of the README from the tables of this folder's pages, so that it shows what they say.

    python docs/benchmarks/at_a_glance.py [--plot at_a_glance.png]

Nothing is measured here.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).resolve().parent
WANDA, SPARSEGPT, ALPS = "Wanda", "SparseGPT", "ALPS"
MASKS, WEIGHTS = "relaxprune,\nmasks alone", "relaxprune,\nnew weights"
COLOURS = {WANDA: "#c3c8d0", SPARSEGPT: "#98a0ad", ALPS: "#69727f", MASKS: "#5aa9f0", WEIGHTS: "#0b559f"}
TEXTS = {"like": "like the calibration text", "builtin": "Python's documentation", "python": "Python source"}
Line = dict[str, str]


@dataclass(frozen=True)
class Figures:
    """What the picture shows, by method.

    Attributes:
        error: of a layer's output over Wanda's, the mean of four layers.
        perplexity: of the whole model, and of the dense one.
        dense: that of the dense model.
        divergence: from the dense model, by kind of text.
    """

    error: dict[str, float]
    perplexity: dict[str, float]
    dense: float
    divergence: dict[str, list[float]]


def lines(page: str, *heads: str) -> list[Line]:
    """Return the first table of a page that has these columns, a dict for each line."""
    for block in re.findall(r"(?:^\|.*\|\n)+", (HERE / page).read_text(encoding="utf-8"), re.MULTILINE):
        head, _, *rest = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if set(heads) <= set(head):
            return [dict(zip(head, cells, strict=True)) for cells in rest]
    raise SystemExit(f"no table of {page} has the columns {', '.join(heads)}")


def number(cell: str) -> float:
    """Return the number that a cell begins with: a standard error or seconds may follow."""
    return float(re.split(r"[ ,]", cell)[0])


def figures() -> Figures:
    """Return the figures of the pages."""
    moving = [line for line in lines("weights.md", "layer", "set", "alps") if line["set"] == "50%"]
    masks = [number(line["default"]) for line in lines("README.md", "layer", "fast", "default")[: len(moving)]]
    whole = {line["method"]: line for line in lines("comparison.md", "method", "perplexity, 50 %")}
    judged = {line["recipe"]: line for line in lines("judge.md", "recipe", *TEXTS)}
    names = {WANDA: "Wanda", SPARSEGPT: "SparseGPT", MASKS: "fw`, fast", ALPS: "ALPS", WEIGHTS: "reconstruct`, fast"}
    recipes = {WANDA: "wanda", ALPS: "alps", MASKS: "fw+robust", WEIGHTS: "reconstruct+robust+refined"}
    columns = {SPARSEGPT: "sparsegpt", ALPS: "alps", WEIGHTS: "reconstruct"}
    error = {name: fmean(number(line[column]) for line in moving) for name, column in columns.items()}
    (text,) = re.findall(r"dense model has (\d+\.\d+)", " ".join((HERE / "comparison.md").read_text().split()))
    return Figures(
        error={WANDA: 1.0, **error, MASKS: fmean(masks)},
        perplexity={name: number(whole[method]["perplexity, 50 %"]) for name, method in names.items()},
        dense=float(text),
        divergence={name: [number(judged[recipe][kind]) for kind in TEXTS] for name, recipe in recipes.items()},
    )


def bars(panel: Axes, values: dict[str, float], title: str, digits: int) -> None:
    """Draw one bar a method, the largest on top, with its value."""
    shown = sorted(values, key=values.__getitem__)
    panel.barh(shown, [values[name] for name in shown], color=[COLOURS[name] for name in shown])
    for place, name in enumerate(shown):
        panel.annotate(f"{values[name]:.{digits}f}", (values[name], place), (3, -3), textcoords="offset points")
    panel.set_title(title, loc="left")
    panel.set_xlim(0, 1.18 * max(values.values()))
    panel.set_xticks([])
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def groups(panel: Axes, values: dict[str, list[float]], title: str) -> None:
    """Draw one group of bars a text, in the order of the methods."""
    width = 0.8 / len(values)
    for place, (name, heights) in enumerate(values.items()):
        at = [text + (place - (len(values) - 1) / 2) * width for text in range(len(heights))]
        panel.bar(at, heights, 0.9 * width, color=COLOURS[name])
        for left, height in zip(at, heights, strict=True):
            panel.annotate(f"{height:.2f}", (left, height), (0, 2), textcoords="offset points", ha="center", fontsize=9)
    panel.set_xticks(range(len(TEXTS)), list(TEXTS.values()))
    panel.set_title(title, loc="left")
    panel.set_yticks([])
    panel.spines[["top", "right", "left"]].set_visible(False)


def main() -> None:
    """Draw the three panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", default=str(HERE / "at_a_glance.png"))
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = figures()
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"})
    figure, panels = plt.subplot_mosaic("ab;cc", figsize=(8, 5), layout="constrained")
    bars(panels["a"], found.error, "Error of a layer, of Wanda's", 2)
    bars(panels["b"], found.perplexity, f"Perplexity (dense: {found.dense:.1f})", 1)
    panels["b"].axvline(found.dense, color="black", linewidth=0.8, linestyle=":")
    order = (WANDA, MASKS, ALPS, WEIGHTS)
    groups(panels["c"], {name: found.divergence[name] for name in order}, "KL from the dense model, by kind of text")
    figure.savefig(arguments.plot, dpi=150)


if __name__ == "__main__":
    main()
