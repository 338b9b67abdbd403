"""``relaxprune masks convert``: a run in the form that a runtime multiplies with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import door, tell
from .option_groups import with_groups

if TYPE_CHECKING:
    from relaxprune.conversion import Conversion

_MIB = 2**20


@with_groups
def convert_run_folder(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `prune` wrote.")],
    to: Annotated[
        str,
        typer.Option(metavar="TARGET", help="semi-structured, torchao-fp8-2of4, macko, openvino or compact."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder, new or empty.")],
) -> int:
    """Write a run's model in another form, read it back, and check weights, zeros and logits."""
    from relaxprune.conversion import convert_run

    from .loading import silence

    silence()
    with door():
        found = convert_run(run, to, out)
    print(conversion_table(found))
    print(f"written to {out}, and read back: {found.layers} weights within rounding, {found.pruned} pruned entries 0")
    return tell(_left(found))


def _left(found: Conversion) -> Iterator[str]:
    """Say what is stored as before, once for each reason."""
    from relaxprune.support.sentences import some

    reasons: dict[str, list[str]] = {}
    for item in found.left:
        reasons.setdefault(item.reason, []).append(item.parameter)
    for reason, names in reasons.items():
        yield f"stored as before, since {reason}: {some(names, 2)}"


def conversion_table(found: Conversion) -> str:
    """Return bytes before and after, dense in the form's own dtype too, and how far the logits moved."""
    from relaxprune.conversion.registry import target_class
    from relaxprune.support import table

    dense_form = f"dense in {found.dense_bits} bits"
    lines: list[tuple[object, ...]] = [("", "as the run stores it", dense_form, found.target, f"share of {dense_form}")]
    for name, before, after in (
        ("weights on disk, MiB", found.dense_disk_bytes, found.disk_bytes),
        ("weights in memory, MiB", found.dense_memory_bytes, found.memory_bytes),
    ):
        sizes = (f"{count / _MIB:.1f}" for count in (before, found.dense_form_bytes, after))
        lines.append((name, *sizes, f"{after / found.dense_form_bytes:.1%}"))
    stored, dense = found.difference, found.from_dense
    besides = target_class(found.target).besides
    return "\n".join(
        [
            *table(lines),
            *([f"its bytes include what {besides} save, and not the zeros alone"] if besides else []),
            f"logits: {dense.relative:.2g} of their size from those of the same weights in dense form "
            f"(accepted: {found.tolerance:g})",
            f"rounding to the form: {stored.relative:.2g} of their size from those of the run, KL "
            f"{stored.divergence:.2g} nats, the same likeliest token at {stored.same_choice:.0%} of positions",
        ]
    )
