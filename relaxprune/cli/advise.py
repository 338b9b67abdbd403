"""``relaxprune advise``: which pattern to ask for on which device, before anything is pruned."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import door
from .option_groups import with_groups

if TYPE_CHECKING:
    from relaxprune.advice import Advice, ModelSizes


@dataclass(frozen=True)
class UseGroup:
    """Where and how the model will run."""

    device: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="h100, a100, 4090, 3090, xeon, epyc, m-series or jetson; may be repeated. All."
        ),
    ] = field(default_factory=list)
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1
    tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 512


@dataclass(frozen=True)
class SourceGroup:
    """Where the model's config comes from."""

    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None
    cache_dir: Annotated[Path | None, typer.Option(help="Folder for downloaded models.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model (off).")
    ] = False


@with_groups
def advise_model(
    model: Annotated[str, typer.Argument(help="Folder, hub id or alias, as for `prune`.")],
    use: UseGroup,
    source: SourceGroup,
) -> None:
    """Say which pattern pays where, by published measurements, and where to stay dense. No weight is read."""
    from relaxprune.advice import advise, model_sizes
    from relaxprune.advice.advising import check_use
    from relaxprune.models import LoadOptions

    check_use(use.device, use.batch, use.tokens)  # before a hub is asked
    cache = None if source.cache_dir is None else str(source.cache_dir)
    options = LoadOptions(revision=source.revision, cache_dir=cache, trust_remote_code=source.trust_remote_code)
    with door():
        sizes = model_sizes(model, options)
    found = advise(sizes, use.device, use.batch, use.tokens)
    share = sizes.in_blocks / sizes.parameters
    weights = f"{_count(sizes.parameters)} weights, {_size(sizes.bytes())} in 16 bits"
    print(f"{model}: {sizes.layers} layers hold {share:.0%} of {weights}")
    for advice in found:
        print("\n".join(_lines(advice)))
    print("\n".join(_ends(sizes)))


def _lines(advice: Advice) -> list[str]:
    """Return what to ask for, what was measured, and where that is published."""
    from relaxprune.advice import DEVICES

    figure = advice.figure
    many = f"{advice.tokens} token{'s' if advice.tokens > 1 else ''} at once"
    head = f"\n{DEVICES[advice.device]}, {advice.phase}, {many}: "
    if figure.ask is None:
        return [head + "stay dense", f"  {figure.runtime}: {figure.measured}", f"  {figure.source}"]
    size = "bytes not published" if advice.model_bytes is None else f"{_size(advice.model_bytes)} in all"
    lines = [
        f"{head}{figure.ask}, {figure.speed:g} times dense, {size}",
        f"  {figure.runtime}: {figure.measured}",
        f"  {figure.source}",
    ]
    if advice.left:
        lines.append(f"  {advice.left}: they stay dense, and are counted in 16 bits")
    lines += [
        f"  or {other.ask}, {other.speed:g} times dense, {other.runtime}: {other.measured}\n  {other.source}"
        for other in advice.others
        if other.ask is not None
    ]
    return lines


def _ends(sizes: ModelSizes) -> list[str]:
    """Return what holds everywhere."""
    from relaxprune.advice.advising import MEASURED_WIDTH

    lines = [
        "",
        "These are figures of others, for their models, and were not measured here. Servers that load the pruned",
        "folder as it is (vLLM, TensorRT-LLM, llama.cpp) run it dense, at the speed and size of the dense model.",
    ]
    if sizes.widest < MEASURED_WIDTH:
        lines.append(
            f"The widest layer has {sizes.widest} columns, fewer than in most of these measurements: expect less."
        )
    return lines


def _size(count: float) -> str:
    """Return bytes in words."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _count(count: int) -> str:
    """Return a number of weights in words."""
    return f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
