"""Evaluation on held-out texts: perplexity, and with ``--against`` the divergence from the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from relaxprune import DivergenceResult, PairedDifference, RelaxPruneError, divergence, perplexity
from relaxprune.evaluation.divergence import with_error
from relaxprune.models import LoadedModel, LoadOptions, load_tokenizer
from relaxprune.models.token_limits import check_same_tokenizer, check_tokenizer
from relaxprune.runs import KeptDivergence, evaluation_of, record_evaluation, run_folder_of, weights_sha256
from relaxprune.support.tables import table
from relaxprune.text import CalibrationOptions, TokenWindows, evaluation_windows, open_source
from relaxprune.text.mixture import SELF

from .endings import door
from .loading import load_model, load_options

if TYPE_CHECKING:
    from relaxprune.runs.evaluation_file import Evaluation

    from .option_groups import ModelGroup, TextGroup


@dataclass(frozen=True)
class Texts:
    """What is read, checked as far as possible without a model.

    Attributes:
        sources: the texts.
        options: how many windows of each, and how long.
        spread: whether they are spread over the text: perplexities alone are those of its first windows, as in papers.
    """

    sources: tuple[str, ...]
    options: CalibrationOptions
    spread: bool

    @classmethod
    def of(cls, group: TextGroup) -> Texts:
        """Return the texts of a command.

        Raises:
            RelaxPruneError: naming the option, or the source that is not there.
        """
        if group.versus is not None and group.against is None:
            raise RelaxPruneError("--versus is given, but there is no --against")
        sources = tuple(group.text or ["builtin"])
        if repeated := [source for source in sources if sources.count(source) > 1]:
            raise RelaxPruneError(f"--text names {repeated[0]!r} more than once: give each text once")
        if SELF in sources and group.against is None:
            raise RelaxPruneError(f"--text {SELF} is sampled from the dense model: name that with --against")
        options = CalibrationOptions(
            windows=20 if group.windows is None else group.windows, length=512 if group.length is None else group.length
        )
        with door():
            for source in sources:
                open_source(source)
        return cls(sources, options, spread=group.against is not None)

    def windows(self, loaded: LoadedModel) -> list[TokenWindows]:
        """Return the windows of each text, those of ``self`` sampled from the loaded model."""
        check_tokenizer(loaded.model, loaded.tokenizer)
        with door():
            return [
                evaluation_windows(source, loaded.tokenizer, self.options, model=loaded.model, spread=self.spread)
                for source in self.sources
            ]


def evaluate_texts(model: str, loading: ModelGroup, group: TextGroup) -> None:
    """Print what is measured on each text, and keep it in the run folder if there is one."""
    texts, options = Texts.of(group), load_options(loading)
    if group.against is None:
        _perplexities(model, options, texts, run_folder_of(model, group.record))
        return
    rivals = [model] if group.versus is None else [model, group.versus]
    _divergences([(name, run_folder_of(name, group.record)) for name in rivals], group.against, options, texts)


def _perplexities(model: str, options: LoadOptions, texts: Texts, folder: Path | None) -> None:
    """Print the perplexity on each text."""
    with door():
        loaded = load_model(model, options)
    found = []
    for tokens in texts.windows(loaded):
        result = perplexity(loaded.model, tokens.tokens)
        found.append((result, tokens))
        print(perplexity_line(result.perplexity, result.windows, result.length, tokens.source), flush=True)
    # Said before it is kept: a folder that cannot be written must not cost the answer.
    if folder is not None:
        sha256 = weights_sha256(loaded.model)
        _keep(folder, [evaluation_of(model, folder, result, tokens, sha256) for result, tokens in found])


def _divergences(rivals: Sequence[tuple[str, Path | None]], against: str, options: LoadOptions, texts: Texts) -> None:
    """Print one table of one or two models against the dense one."""
    names = [name for name, _ in rivals]
    others = replace(options, revision=None)  # a revision is one of MODEL, also if the dense model has the same name
    wanted = [options, others][: len(names)]
    with door():
        tokenizers = [load_tokenizer(name, asked) for name, asked in zip(names, wanted, strict=True)]
        print(f"loading {against}", flush=True)
        dense = load_model(against, others)
    for name, tokenizer in zip(names, tokenizers, strict=True):
        check_same_tokenizer(tokenizer, dense.tokenizer, name)
    windows = texts.windows(dense)
    found: list[list[DivergenceResult]] = []
    kept: list[tuple[Path, list[Evaluation]]] = []
    for (name, folder), asked in zip(rivals, wanted, strict=True):
        print(f"loading {name}", flush=True)
        with door():
            loaded = load_model(name, asked)
        found.append([divergence(loaded.model, dense.model, tokens.tokens) for tokens in windows])
        if folder is not None:
            kept.append((folder, _evaluations((name, loaded), (against, dense), windows, found[-1], folder)))
        del loaded  # two models at a time
    print(divergence_table(names, against, texts.sources, found), flush=True)
    for folder, evaluations in kept:
        _keep(folder, evaluations)


def _evaluations(
    judged: tuple[str, LoadedModel],
    against: tuple[str, LoadedModel],
    windows: Sequence[TokenWindows],
    results: Sequence[DivergenceResult],
    folder: Path,
) -> list[Evaluation]:
    """Return what a run folder keeps of a model and of the dense one, each with its name."""
    (name, loaded), (dense_name, dense) = judged, against
    sha256, dense_sha256 = weights_sha256(loaded.model), weights_sha256(dense.model)
    entries = []
    for tokens, result in zip(windows, results, strict=True):
        own = KeptDivergence.of(result, dense_name, dense_sha256)
        entries.append(evaluation_of(name, folder, result.perplexity, tokens, sha256, own))
        entries.append(evaluation_of(dense_name, folder, result.dense_perplexity, tokens, dense_sha256))
    return entries


def _keep(folder: Path, entries: Sequence[Evaluation]) -> None:
    """Record evaluations in a run folder, and say so."""
    with door():
        for entry in entries:
            record_evaluation(folder, entry)
    methods = ", ".join(dict.fromkeys(entry.method for entry in entries))
    print(f"kept in {folder}, method {methods}", flush=True)


def divergence_table(
    names: Sequence[str], against: str, sources: Sequence[str], found: Sequence[Sequence[DivergenceResult]]
) -> str:
    """Return a table of divergences, a line for each text, and what its columns mean.

    Args:
        names: of one model, or of two.
        against: the dense model.
        sources: the texts.
        found: for each model its results, text by text.
    """
    head = ["text", "KL", "perplexity", "dense", "windows", "length"]
    lines: list[list[str]] = []
    for source, result in zip(sources, found[0], strict=True):
        lines.append([
            source,
            with_error(result.mean, result.standard_error),
            f"{result.perplexity.perplexity:.2f}",
            f"{result.dense_perplexity.perplexity:.2f}",
            str(result.windows),
            str(result.length),
        ])  # fmt: skip
    notes = [f"KL: mean divergence of {names[0]} from {against}, nats a token ± standard error over windows, held out"]
    if len(found) > 1:
        head += ["versus", "difference", "lower"]
        for line, result, other in zip(lines, *found, strict=True):
            difference = result.minus(other)
            versus = with_error(other.mean, other.standard_error)
            line += [versus, str(difference), _lower(names, difference)]
        notes.append(f"versus: KL of {names[1]}; difference: {names[0]} less it, window by window")
    return "\n".join([*table([head, *lines]), *notes])


def _lower(names: Sequence[str], difference: PairedDifference) -> str:
    """Return which of two models has the lower divergence."""
    if not difference.clear:
        return "not clear"
    return names[0] if difference.mean < 0 else names[1]


def perplexity_line(value: float, windows: int, length: int, source: str) -> str:
    """Return a line with a perplexity and what it was measured on, without which it means nothing."""
    return f"perplexity {value:.4f} ({windows} windows of {length} tokens, {source}, held out)"
