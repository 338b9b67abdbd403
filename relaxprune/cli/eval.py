"""``relaxprune eval``: perplexity of a model on text that calibration never sees."""

from __future__ import annotations

from typing import Annotated

import typer

from .endings import door, interruptible
from .option_groups import ModelGroup, with_groups


@with_groups
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    loading: ModelGroup,
    text: Annotated[str, typer.Option(metavar="SOURCE", help="builtin, a text file, c4 or wikitext2.")] = "builtin",
    windows: Annotated[int, typer.Option(help="Number of windows.")] = 20,
    length: Annotated[int, typer.Option(help="Tokens per window, at least 2.")] = 512,
) -> None:
    """Print a model's perplexity on held-out text, with window length and count."""
    from relaxprune.evaluation.perplexity import perplexity
    from relaxprune.pruning.calibration import CalibrationOptions, evaluation_windows, open_source

    from .loading import load_model, load_options

    with interruptible():
        options, wanted = load_options(loading), CalibrationOptions(windows=windows, length=length)
        with door():
            open_source(text, "evaluation")
            loaded = load_model(model, options)
            tokens = evaluation_windows(text, loaded.tokenizer, wanted)
        result = perplexity(loaded.model, tokens.tokens)
    print(perplexity_line(result.perplexity, result.windows, result.length, tokens.source))


def perplexity_line(value: float, windows: int, length: int, source: str) -> str:
    """Say a perplexity with what it was measured on; a perplexity without these means nothing."""
    return f"perplexity {value:.4f} ({windows} windows of {length} tokens, {source}, held out)"
