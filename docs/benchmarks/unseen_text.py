"""Why the least error on one text is the wrong aim: errors of layers on text like the calibration's and of other kinds.

    python docs/benchmarks/unseen_text.py --plot unseen_text.png

Masks, and new weights, are chosen on Grams of the dense model: of the calibration text alone, or of as many windows of
which a third or a half are samples of the model; shrunk to their diagonals by λ. They are judged on the Gram that they
were chosen on, and on those of text that they have not seen: the end of the calibration text, text of other kinds, and
other samples. Every error is over that of Wanda's mask, chosen on the same windows and judged on the same Gram; the
table has the mean over layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import head, line, model_grams, model_weight, picture, polytope
from matplotlib.axes import Axes
from torch import Tensor

from relaxprune import MaskProblem, ReconstructionProblem, load_model, solve
from relaxprune.inputs.shrinkage import shrink
from relaxprune.text.windows import CalibrationOptions, calibration_windows, evaluation_windows

ROLES = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
OWN = "own"
Grams = dict[str, Tensor]  # layer -> (cols, cols)


@dataclass(frozen=True)
class Point:
    """The mean errors of one way to calibrate: kind of text -> error over Wanda's."""

    moves: bool
    calibration: str
    share: float
    errors: dict[str, float]


def error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """Return trace((W − V) G (W − V)ᵀ) in float64."""
    change = weight.double() - new.double()
    return float(((change @ gram.double()) * change).sum())


def chosen(weight: Tensor, gram: Tensor, pattern: str, moves: bool) -> Tensor:
    """Return the pruned weight, (rows, cols), whose kept entries are new if ``moves``."""
    masks = polytope(pattern, (weight.shape[0], weight.shape[1]))
    if moves:
        moved = solve(ReconstructionProblem(weight, gram, masks, damping=0.03), effort="fast").weight
        assert moved is not None
        return moved
    return weight.masked_fill(~solve(MaskProblem(weight, gram, masks), effort="fast").mask, 0.0)


def wanda(weight: Tensor, gram: Tensor, pattern: str) -> Tensor:
    """Return the weight pruned by Wanda's mask."""
    masks = polytope(pattern, (weight.shape[0], weight.shape[1]))
    return weight.masked_fill(~solve(MaskProblem(weight, gram, masks), "wanda").mask, 0.0)


def points(
    weights: Grams, seen: dict[str, Grams], unseen: dict[str, Grams], arguments: argparse.Namespace
) -> Iterator[Point]:
    """Yield the mean errors of every way to calibrate, for masks and for moved weights."""
    for moves in (False, True):
        for calibration, grams in seen.items():
            base = {name: wanda(weight, grams[name], arguments.pattern) for name, weight in weights.items()}
            for share in arguments.shares:
                sums = dict.fromkeys((OWN, *unseen), 0.0)
                for name, weight in weights.items():
                    new = chosen(weight, shrink(grams[name].clone(), share), arguments.pattern, moves)
                    for kind in sums:
                        judge = grams[name] if kind == OWN else unseen[kind][name]
                        sums[kind] += error(weight, new, judge) / error(weight, base[name], judge)
                yield Point(moves, calibration, share, {kind: total / len(weights) for kind, total in sums.items()})


def read_windows(loaded: Any, arguments: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return calibration windows by how they are made up, and windows of unseen text."""
    most, length, held = max(arguments.windows), arguments.length, arguments.unseen
    taken = calibration_windows(
        arguments.text, loaded.tokenizer, CalibrationOptions(windows=most, length=length)
    ).tokens
    samples = calibration_windows(
        "self", loaded.tokenizer, CalibrationOptions(windows=most + held, length=length), model=loaded.model
    ).tokens
    seen = {f"{count} windows": taken[:count] for count in sorted(arguments.windows)}
    options = CalibrationOptions(windows=held, length=length)
    unseen = {"like": evaluation_windows(arguments.text, loaded.tokenizer, options).tokens}
    unseen |= {other: evaluation_windows(other, loaded.tokenizer, options).tokens for other in arguments.others}
    for share in arguments.samples:
        drawn = int(most * share)
        seen[f"{most - drawn} and {drawn} samples"] = torch.cat([taken[: most - drawn], samples[:drawn]])
    return seen, {**unseen, "self": samples[most:]}


def panel(found: list[Point], axes: Axes) -> None:
    """Draw errors against λ: a colour for each kind of text, a line style for each calibration."""
    styles = dict(zip(dict.fromkeys(point.calibration for point in found), ("-", "--", ":", "-."), strict=False))
    colours = {kind: f"C{number}" for number, kind in enumerate(found[0].errors)}
    for calibration, style in styles.items():
        curve = [point for point in found if point.calibration == calibration]
        for kind, colour in colours.items():
            axes.plot(
                [point.share for point in curve],
                [point.errors[kind] for point in curve],
                style,
                color=colour,
                label=f"{kind}, {calibration}",
            )
    axes.axhline(1.0, color="grey", linewidth=0.5)
    axes.set(
        title="weights move" if found[0].moves else "masks",
        xlabel="λ, how far Grams are shrunk",
        ylabel="error over Wanda's",
    )
    axes.legend(fontsize="xx-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))


def main() -> None:
    """Print a table in Markdown, and draw it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="builtin", help="calibration text: builtin or a file")
    parser.add_argument("--others", nargs="*", default=["python"], help="texts of other kinds")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 15, 27])
    parser.add_argument("--rows", type=int, default=64, help="of every layer")
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4, 0.7])
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--samples", type=float, nargs="+", default=[1 / 3, 1 / 2], help="shares of the most windows")
    parser.add_argument("--unseen", type=int, default=8, help="windows of each kind of unseen text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--plot", default=None)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model)
    names = [f"model.layers.{block}.{role}" for block in arguments.blocks for role in ROLES]
    weights = {name: model_weight(loaded.model, name, arguments.rows) for name in names}
    calibration, unseen_windows = read_windows(loaded, arguments)
    seen = {name: model_grams(loaded.model, tokens, names) for name, tokens in calibration.items()}
    unseen = {kind: model_grams(loaded.model, tokens, names) for kind, tokens in unseen_windows.items()}
    print(f"\n{len(names)} layers, first {arguments.rows} rows, {arguments.pattern}; torch {torch.__version__}\n")
    head("weights", "calibrated on", "λ", OWN, *unseen)
    found = []
    for point in points(weights, seen, unseen, arguments):
        line("move" if point.moves else "stay", point.calibration, f"{point.share:g}", *point.errors.values())
        found.append(point)
    if arguments.plot:
        kinds = [[point for point in found if point.moves is moves] for moves in (False, True)]
        picture(arguments.plot, [lambda axes, part=part: panel(part, axes) for part in kinds])


if __name__ == "__main__":
    main()
