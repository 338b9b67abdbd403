"""``relaxprune eval``: perplexity of a model on text that calibration never sees."""

from __future__ import annotations

from typing import Annotated

import typer

from .option_groups import ModelGroup, with_groups


@with_groups
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    loading: ModelGroup,
    text: Annotated[str, typer.Option(metavar="SOURCE", help="builtin, a text file, c4 or wikitext2.")] = "builtin",
    windows: Annotated[int, typer.Option(min=1, help="Number of windows.")] = 20,
    length: Annotated[int, typer.Option(min=1, help="Tokens per window.")] = 512,
) -> None:
    """Print a model's perplexity on held-out text, with window length and count."""
    from relaxprune.evaluation.perplexity import perplexity

    from .loading import evaluation_tokens, load_model

    loaded = load_model(model, loading)
    tokens = evaluation_tokens(text, loaded, windows, length)
    result = perplexity(loaded.model, tokens.tokens)
    print(perplexity_line(result.perplexity, result.windows, result.length, tokens.source))


def perplexity_line(value: float, windows: int, length: int, source: str) -> str:
    """Say a perplexity with what it was measured on; a perplexity without these means nothing."""
    return f"perplexity {value:.4f} ({windows} windows of {length} tokens, {source}, held out)"
