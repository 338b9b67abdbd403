"""``relaxprune prune``: a model in, a folder out."""

from __future__ import annotations

from typing import Annotated

import typer

from ..endings import ending
from ..option_groups import with_groups
from .words import PruneWords


@with_groups
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    words: PruneWords,
) -> int:
    """Prune a model block by block and write a folder that transformers loads."""
    from .job import resolve
    from .run import left_behind, run_prune
    from .together import together

    with ending(lambda: left_behind(words.run.out)), together() as ranks:
        return run_prune(resolve(model, words), ranks)
