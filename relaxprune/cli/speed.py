"""``relaxprune speed``: is a run's converted form faster here than the dense model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input, door, tell
from .option_groups import with_groups

if TYPE_CHECKING:
    from relaxprune.timing import Speed, SpeedOptions
    from relaxprune.timing.model_times import ModelTime

_MIB = 2**20


@dataclass(frozen=True)
class SpeedGroup:
    """What is measured; fields are named as in ``SpeedOptions``."""

    device: Annotated[
        str | None, typer.Option(help="Device to measure on; the accelerator that is there by default, else cpu.")
    ] = None
    tokens: Annotated[str, typer.Option(metavar="N,…", help="Tokens that a layer is given at once.")] = (
        "1,16,128,512,2048"
    )
    prompt: Annotated[int, typer.Option(help="Tokens that the whole model reads at once.")] = 512
    new_tokens: Annotated[int, typer.Option(help="Tokens that it then reads one by one.")] = 16
    repeats: Annotated[int, typer.Option(help="Measurements of each number, whose median counts.")] = 5

    def options(self) -> SpeedOptions:
        """Return what is asked, checked."""
        from relaxprune.timing import SpeedOptions

        words = [word.strip() for word in self.tokens.split(",")]
        if not all(word.isdecimal() for word in words):
            raise bad_input(f"--tokens is a list of whole numbers such as 1,16,128, got {self.tokens!r}")
        asked = {item.name: getattr(self, item.name) for item in fields(SpeedGroup)}
        return SpeedOptions(**{**asked, "tokens": tuple(int(word) for word in words)})


@with_groups
def speed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `prune` wrote.")],
    group: SpeedGroup,
    to: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Form to convert to; semi-structured for 2:4, else macko, by default."),
    ] = None,
    converted: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder that `masks convert` made of RUN, instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File for the numbers, .json; a picture, .svg, beside it.")
    ] = None,
) -> int:
    """Measure layers and the whole model, dense and converted, on the device at hand."""
    from relaxprune.solving.comparison_plot import require_matplotlib
    from relaxprune.support import refuse_output_file, write_json
    from relaxprune.support.durable import write_text
    from relaxprune.timing import measure_speed
    from relaxprune.timing.picture import speed_picture

    from .loading import silence

    options = group.options()
    if out is not None:
        if out.suffix != ".json":
            raise bad_input(f"--out must name a file that ends in .json, got {str(out)!r}")
        require_matplotlib()
        refuse_output_file(out)
        refuse_output_file(out.with_suffix(".svg"))
    silence()
    with door():
        found = measure_speed(run, options, to=to, converted=converted)
        print("\n".join(speed_lines(found)))
        if out is not None:
            write_json(out, found.to_dict())
            write_text(out.with_suffix(".svg"), speed_picture(found))
            print(f"written: {out} and {out.with_suffix('.svg').name}")
    return tell(_notices(found))


def speed_lines(found: Speed) -> list[str]:
    """Return what was measured, as tables."""
    from relaxprune.conversion.registry import target_class
    from relaxprune.support import table

    lines = [f"{found.target} against dense {found.dtype} on {found.machine}"]
    if besides := target_class(found.target).besides:
        lines.append(f"the figures of {found.target} include {besides}, and not the zeros alone")
    if found.layers:
        head: tuple[object, ...] = ("layer", "tokens", "dense, ms", "converted, ms", "converted / dense")
        rows = [
            (f"{item.rows} x {item.cols}", item.tokens, 1e3 * item.dense_s, 1e3 * item.converted_s, item.ratio)
            for item in found.layers
        ]
        lines += ["", *table([head, *rows])]
    options = found.options
    whole: list[tuple[object, ...]] = [("whole model", "dense", "converted", "converted / dense")]
    for name, value in (
        (f"prefill of {options.prompt} tokens, ms", _prefill),
        ("decode after them, ms a token", _decode),
        ("weights in memory, MiB", _weights),
        ("peak beside them, MiB", _peak),
    ):
        dense, converted = value(found.dense), value(found.converted)
        ratio = converted / dense if dense and converted is not None else "-"
        whole.append((name, "-" if dense is None else dense, "-" if converted is None else converted, ratio))
    return [*lines, "", *table(whole)]


def _prefill(item: ModelTime) -> float | None:
    return 1e3 * item.prefill_s


def _decode(item: ModelTime) -> float | None:
    return None if item.decode_s is None else 1e3 * item.decode_s


def _weights(item: ModelTime) -> float | None:
    return item.weight_bytes / _MIB


def _peak(item: ModelTime) -> float | None:
    return None if item.peak_bytes is None else item.peak_bytes / _MIB


def _notices(found: Speed) -> list[str]:
    """Say what the numbers are worth."""
    if not found.kernel:
        return [
            f"nothing on {found.device} multiplies with {found.target}: its weights were unpacked, and both "
            "columns measure a dense model; the zeros are worth nothing here"
        ]
    phases = [(found.dense.prefill_s, found.converted.prefill_s), (found.dense.decode_s, found.converted.decode_s)]
    if all(after >= before for before, after in phases if before is not None and after is not None):
        return [f"{found.target} is not faster than the dense model on {found.device}"]
    return []
