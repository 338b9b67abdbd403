"""``relaxprune masks``: look at masks, compare two sets of them, and turn them into other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .convert import convert_run_folder
from .endings import door, tell
from .option_groups import with_groups

masks_app = typer.Typer(
    name="masks", help="Look at masks, compare them, and convert them.", no_args_is_help=True, rich_markup_mode=None
)

masks_app.command("convert")(convert_run_folder)

Source = Annotated[Path, typer.Argument(help="A folder that `prune` wrote, or a mask file.")]
Folder = Annotated[Path, typer.Argument(help="A folder that `prune` wrote.")]
NewFolder = Annotated[Path, typer.Argument(help="Output folder, new or empty.")]


@masks_app.command("stats")
def stats(source: Source) -> None:
    """Show sparsity and N:M pattern of every mask."""
    from relaxprune.masks import describe
    from relaxprune.runs import open_mask_file
    from relaxprune.support import table

    with door():
        found = [describe(name, mask) for name, mask in open_mask_file(source)[0].items()]
    head = ("parameter", "shape", "sparsity", "row kept", "column kept", "empty rows", "empty columns", "pattern")
    lines: list[tuple[object, ...]] = [head]
    for item in found:
        rows = f"{item.row_least:.3f} to {item.row_most:.3f}"
        columns = f"{item.column_least:.3f} to {item.column_most:.3f}"
        size = f"{item.rows}x{item.cols}"
        lines.append(
            (item.name, size, item.sparsity, rows, columns, item.empty_rows, item.empty_columns, item.pattern or "-")
        )
    weights = sum(item.rows * item.cols for item in found)
    kept = sum(item.kept for item in found)
    lines.append(("all", f"{weights} weights", 1 - kept / max(1, weights), "", "", "", "", ""))
    print("\n".join(table(lines)))


@masks_app.command("diff")
@with_groups
def diff(first: Source, second: Source) -> int:
    """Compare two sets of masks of the same weights."""
    from relaxprune.masks import compare_masks
    from relaxprune.runs import open_mask_file
    from relaxprune.support import table

    with door():
        found = compare_masks(open_mask_file(first)[0], open_mask_file(second)[0])
    lines: list[tuple[object, ...]] = [
        ("parameter", "both keep", "first only", "second only", "jaccard", "unequal rows")
    ]
    for item in sorted(found.layers, key=lambda item: item.jaccard):
        lines.append((item.name, item.both, item.first_only, item.second_only, item.jaccard, item.rows_that_differ))
    both, one, two = (
        sum(getattr(item, name) for item in found.layers) for name in ("both", "first_only", "second_only")
    )
    lines.append(("all", both, one, two, found.jaccard if found.layers else "-", ""))
    print("\n".join(table(lines)))
    apart = [f"only the first has a mask of {name}" for name in found.first_only]
    return tell([*apart, *(f"only the second has a mask of {name}" for name in found.second_only)])


@masks_app.command("export")
def export(
    folder: Folder,
    out: NewFolder,
    certificates: Annotated[
        bool, typer.Option("--certificates/--no-certificates", help="Take the run's certificates along (on).")
    ] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model (off).")
    ] = False,
) -> None:
    """Write masks, certificates and record, without any weight; ``apply`` puts them on the dense model."""
    from transformers.utils import logging

    from relaxprune.masks import export_package

    logging.disable_progress_bar()
    with door():
        found = export_package(folder, out, certificates=certificates, trust_remote_code=trust_remote_code)
    masks = found.size(["masks.safetensors"])
    print(f"{out}: masks of {found.weights} weights in {masks} bytes, {8 * masks / found.weights:.3f} bits each")
    if found.certificates:
        print(f"{len(found.certificates)} certificates: {found.size(found.certificates)} bytes")
    print(
        f"{found.size()} bytes in all, without any weight; `relaxprune apply {out} MODEL` puts them on the dense model"
    )


@masks_app.command("unpack")
def unpack(source: Source, out: Annotated[Path, typer.Argument(help="safetensors file to write.")]) -> None:
    """Write the masks as bool tensors, True = kept."""
    from relaxprune.runs import read_masks
    from relaxprune.support import refuse_output_file, write_tensors

    refuse_output_file(out)
    with door():
        masks = read_masks(source)
        write_tensors(out, masks)
    print(f"{out}: {len(masks)} bool tensors, True = kept")


@masks_app.command("compact")
def compact_folder(folder: Folder, out: NewFolder) -> None:
    """Write the checkpoint without its zeros, and bits for them."""
    from relaxprune.masks.compact import compact

    with door():
        before, after = compact(folder, out)
    print(f"{out}: {after} bytes of weights, {after / before:.1%} of {before}")


@masks_app.command("restore")
def restore_folder(
    folder: Annotated[Path, typer.Argument(help="A folder that `masks compact` wrote.")], out: NewFolder
) -> None:
    """Undo ``compact``, and say whether every byte is as it was."""
    from relaxprune.masks.compact import restore

    with door():
        restored = restore(folder, out)
    print(f"{out}: {restored.tensors} tensors, as they were, bit by bit")
    for name in restored.exact:
        print(f"{name}: as it was, byte for byte")
    for name in restored.tensors_only:
        print(f"{name}: every tensor as it was; its other bytes were not recorded when it was compacted")


@masks_app.command("semi-structured")
def semi_structured(folder: Folder) -> None:
    """Say which weights torch's sparse kernels would accept."""
    from relaxprune.masks import BACKENDS, check_folder
    from relaxprune.support import table

    with door():
        found = check_folder(folder)
    lines: list[tuple[object, ...]] = [("parameter", "shape", "dtype", "accepted by", "why not")]
    for item in found:
        shape = "x".join(map(str, item.shape))
        lines.append((item.name, shape, item.dtype, ", ".join(item.accepted) or "-", item.reason or "-"))
    print("\n".join(table(lines)))
    for backend in BACKENDS:
        print(f"{backend}: {sum(backend in item.accepted for item in found)} of {len(found)} weights")
