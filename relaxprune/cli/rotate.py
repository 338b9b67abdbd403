"""``relaxprune rotate``: a dense model in, the same function in another basis out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .option_groups import ModelGroup, PatternGroup, Seed, with_groups
from .prune.words import CalibrationGroup
from .rotation_words import LearnerGroup

if TYPE_CHECKING:
    from .rotating import RotateJob


@dataclass(frozen=True)
class RotateRunGroup:
    """What is rotated, and where to."""

    out: Annotated[Path, typer.Option(help="Output folder, new or empty.")]
    rotate: Annotated[str, typer.Option(help="free (residual stream and value heads), heads, or blocks.")] = "free"
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most that a weight file holds; 50GB by default.")
    ] = None
    seed: Seed = 0
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that torch uses.")] = None
    json: Annotated[bool, typer.Option("--json", help="Events for machines: one JSON object per line.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False


@dataclass(frozen=True)
class RotateWords:
    """All options of the command."""

    run: RotateRunGroup
    learner: LearnerGroup = field(default_factory=LearnerGroup)
    how_much: PatternGroup = field(default_factory=PatternGroup)
    calibration: CalibrationGroup = field(default_factory=CalibrationGroup)
    loading: ModelGroup = field(default_factory=ModelGroup)


@with_groups
def rotate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    words: RotateWords,
) -> None:
    """Write a dense model in a basis in which masks lose less; it computes the same, and transformers loads it."""
    from .rotating import use_threads, write_rotation

    job = _job(model, words)
    use_threads(words.run.threads)
    write_rotation(job, words.run.out)
    job.output.result(f"{words.run.out}: prune it like any other model", folder=str(words.run.out))


def _job(model: str, words: RotateWords) -> RotateJob:
    """Return the job that the words describe."""
    from relaxprune.options import Target
    from relaxprune.support.outputs import refuse_output_folder
    from relaxprune.support.sizes import parse_bytes
    from relaxprune.text import CalibrationOptions

    from .loading import load_options
    from .prune.job import batch_windows, calibration_sources
    from .prune.output import Output
    from .rotating import RotateJob

    run, text = words.run, words.calibration
    asked = words.how_much.sparsity is not None or words.how_much.pattern is not None
    target = words.how_much.target if asked else Target(sparsity=0.5)
    refuse_output_folder(run.out, "name one that is new or empty")
    return RotateJob(
        model=model,
        options=words.learner.options(run.rotate, target, run.seed),
        load=load_options(words.loading),
        sources=calibration_sources(text, 0.0),
        windows=CalibrationOptions(windows=text.windows, length=text.length, seed=run.seed),
        windows_at_once=batch_windows(text.length),
        shard_bytes=None if run.shard_size is None else parse_bytes("--shard-size", run.shard_size),
        output=Output(run.json, run.quiet),
    )
