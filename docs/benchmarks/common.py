"""What the benchmarks share: sets of masks, judging, layers from files, Grams of a model, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.models.forward import evaluating
from relaxprune.models.layers import find_layers
from relaxprune.problems import Polytope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILURES = (RelaxPruneError, FloatingPointError, RuntimeError)  # of a method: they stay in the table
Layer = tuple[str, Tensor, Tensor]  # name, weight (rows, cols), Gram (cols, cols)


def polytope(pattern: str, shape: tuple[int, int]) -> Polytope:
    """Return the masks of "50%" (pruned in every row) or "2:4" (kept of every four columns)."""
    if pattern.endswith("%"):
        return KSparse.from_sparsity(float(pattern[:-1]) / 100, shape)
    keep, group = pattern.split(":")
    return NM(int(keep), int(group))


def label(options: dict[str, Any]) -> str:
    """Return how a line of a table calls these options of ``solve``."""
    return " ".join(str(value) if name == "solver" else f"{name}={value}" for name, value in options.items())


def objective(weight: Tensor, gram: Tensor, mask: Tensor) -> float:
    """Return trace((W − M∘W) G (W − M∘W)ᵀ) of a bool mask in float64, from its definition."""
    pruned = weight.double().masked_fill(mask, 0.0)
    return float(((pruned @ gram.double()) * pruned).sum())


def gap(problem: MaskProblem, mask: Tensor) -> float:
    """Return the relative Frank-Wolfe gap ⟨∇f, m − v⟩ / f of the whole layer at a relaxed mask, in float64."""
    gradient, mask = problem.gradient(mask), mask.to(torch.float64)
    vertex = problem.polytope.lmo(gradient)
    return float((gradient * (mask - vertex)).sum()) / problem.objective(mask)


def read_layers(files: Sequence[str], rows: int | None = None) -> Iterator[Layer]:
    """Read ``weight`` and ``gram`` of safetensors files; of the weight only the first ``rows``."""
    for file in files:
        tensors = load_file(file)
        yield Path(file).stem, tensors["weight"][:rows].contiguous(), tensors["gram"]


def random_layer(rows: int, cols: int, decay: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a random weight, and the Gram of inputs whose principal variances fall as 1, 2^−decay, 3^−decay, …."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=draw)
    directions, _ = torch.linalg.qr(torch.randn(cols, cols, generator=draw))
    variances = torch.arange(1, cols + 1, dtype=torch.float32).pow(-decay)
    gram = (directions * variances) @ directions.T
    scale = 0.25 + torch.rand(cols, generator=draw)  # inputs of unlike size, as a model's are
    gram = gram * scale * scale.unsqueeze(1)
    return weight, (gram + gram.T) / 2


def model_grams(model: Any, tokens: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the Grams of some layers of a dense causal language model.

    Args:
        model: a transformers model.
        tokens: (windows, length) token ids.
        names: module names; layers that read the same tensor share one Gram.
    """
    wanted = set(names)
    layers = [layer for layer in find_layers(model)[0] if layer.name in wanted]
    collector = StatisticsCollector(layers)
    decoder = model.get_decoder()  # without the output head, which no Gram needs
    with evaluating(model):
        for number, window in enumerate(tokens.split(1)):
            with collector.listening(number, None):
                decoder(input_ids=window.to(model.device), use_cache=False)
    found: dict[str, Tensor] = {}
    while collector.groups:
        members, taken = collector.take()
        assert taken is not None  # every window reaches every layer
        found.update(dict.fromkeys((layer.name for layer in members), taken.gram()))
    return found


def model_weight(model: Any, name: str, rows: int | None = None) -> Tensor:
    """Return the first rows of a layer's weight, (rows, cols) float32, as a copy."""
    layer = next(layer for layer in find_layers(model)[0] if layer.name == name)
    return layer.matrix()[:rows].float().clone(memory_format=torch.contiguous_format)


def opened(file: Path, settings: dict[str, Any], items: str) -> dict[str, Any]:
    """Return the results so far of a benchmark that can be stopped: its settings, and a list named ``items``.

    Raises:
        SystemExit: those in the file are of other settings.
    """
    if not file.exists():
        return {"settings": settings, items: []}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    before = found["settings"]
    if changed := [name for name in before | settings if before.get(name) != settings.get(name)]:
        raise SystemExit(f"{file} has {items} of other {', '.join(changed)}: give another place")
    return found


def short(name: str) -> str:
    """Shorten a module name: "model.layers.15.self_attn.v_proj" is "15.v"."""
    parts = name.split(".")
    return f"{parts[-3]}.{parts[-1].removesuffix('_proj')}"


def head(*columns: str) -> None:
    """Print the head of a table in Markdown."""
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)


def line(*cells: object) -> None:
    """Print a line of a table; floats with four digits after the point."""
    print(f"| {' | '.join(f'{cell:.4f}' if isinstance(cell, float) else str(cell) for cell in cells)} |", flush=True)


def picture(path: str, panels: Sequence[Callable[[Axes], None]], across: int | None = None) -> None:
    """Draw panels side by side, ``across`` in a line, and save them."""
    from matplotlib.figure import Figure  # a machine that only measures need not have it

    across = across or len(panels)
    lines = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3.4 * lines), layout="constrained")
    places = figure.subplots(lines, across, squeeze=False).flatten()
    for place, panel in zip(places, panels, strict=False):
        panel(place)
    for place in places[len(panels) :]:
        place.set_axis_off()
    figure.savefig(path, dpi=110)
