"""Token windows for calibration and for evaluation, from text, from the model itself, or from tokens that you have.

Raw text, no chat template, no padding. Text is tokenised with the tokenizer's default special tokens, as the pruning
papers do, so a tokenizer that adds one puts it at the start of each text, not of each window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from relaxprune.models.loaders import loader
from relaxprune.problems.checks import check_seed, whole_number
from relaxprune.problems.errors import RelaxPruneError

from .corpora import Documents, Part, TextSource, open_text
from .mixture import SELF, SourcePart, interleaved, source_parts, spelt
from .model_samples import Sampler, sample_windows
from .token_windows import TokenWindows, windows_from_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT_SEED = 2**32 - 1
"""The seed of windows of ``SELF`` to evaluate on, which ``check_seed`` refuses everywhere else."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Which windows to take.

    Attributes:
        windows: how many, of sources without a number of their own; None for all available (not for sources without a
            useful end, such as "c4" and "self").
        length: tokens in each window.
        seed: for the choice of windows, or for sampling with "self".
        held_out: share of a builtin, python or file text kept for evaluation, at its end.
        temperature: for sampling with "self".
    """

    windows: int | None = 32
    length: int = 512
    seed: int = 0
    held_out: float = 0.25
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers out of range, before any model is loaded."""
        if self.windows is not None:
            whole_number("windows", self.windows, 1)
        whole_number("length", self.length, 2)
        check_seed(self.seed)
        if not 0 < self.temperature < math.inf:
            raise RelaxPruneError(f"temperature must be a positive number, got {self.temperature!r}")


def calibration_windows(
    source: str | Sequence[SourcePart],
    tokenizer: PreTrainedTokenizerBase | None,
    options: CalibrationOptions | None = None,
    *,
    model: PreTrainedModel | None = None,
    sampler: Sampler | None = None,
) -> TokenWindows:
    """Take random, non-overlapping token windows for calibration; the same seed takes the same windows.

    The windows of a mixture are interleaved, so that every batch of them, and every choice of each k-th batch, holds
    each kind as evenly as possible; ``kinds`` says which is which.

    Args:
        source: a name in ``CORPORA``, such as "builtin" or "python", the path of a text file, or "self" (sampled from
            ``model``); or several, each with its number of windows, as in "builtin:32,self:32,text.txt:64". Several
            without numbers share ``options.windows`` evenly. ``source_parts`` says how odd names are written, and what
            it returns will do as well.
        tokenizer: the model's; "self" uses only its start token, and takes None.
        options: see ``CalibrationOptions``.
        model: needed for "self" only, and left as it was.
        sampler: gives the windows of "self", such as ``ModelSamples.again``; None samples them from ``model``.

    Raises:
        RelaxPruneError: unknown source, text too short, fewer windows than asked for (the error says how many), or a
            mixture that is written wrong.
        FileNotFoundError: a source looks like a path and does not exist.
    """
    options = options or CalibrationOptions()
    parts = source_parts(source, options.windows) if isinstance(source, str) else tuple(source)
    texts = [open_source(part.source, options.held_out) for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if text is None and (model is None or part.windows is None):
            raise RelaxPruneError(f"source {SELF!r} is sampled from the model: give the model and a number of windows")
    taken = []
    for part, text in zip(parts, texts, strict=True):
        own = replace(options, windows=part.windows)
        if text is not None:
            taken.append(_windows(text, "calibration", _needed(tokenizer, part.source), own))
        else:
            assert model is not None  # checked above
            taken.append(_sampled(model, tokenizer, own, own.seed, sampler))
    return taken[0] if len(taken) == 1 else _mixed(spelt(parts), taken)


def _mixed(name: str, parts: Sequence[TokenWindows]) -> TokenWindows:
    """Interleave windows of several kinds, those of each kind in their order."""
    rows = [iter(part.tokens) for part in parts]
    order = interleaved([len(part) for part in parts])
    tokens = torch.stack([next(rows[kind]) for kind in order])
    facts = {"parts": {part.source: part.description for part in parts}}
    return windows_from_tokens(tokens, name, facts, [parts[kind].source for kind in order])


def evaluation_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    options: CalibrationOptions | None = None,
    *,
    model: PreTrainedModel | None = None,
    spread: bool = False,
) -> TokenWindows:
    """Take the first token windows, in order, of the part of a text that calibration never sees.

    Non-overlapping, remainder dropped; ``options.windows=None`` takes all of them. ``options.seed`` is not used: "self"
    is sampled with a seed of its own, ``HELD_OUT_SEED``, so that no calibration with another one has seen it.

    Args:
        source: a single one, as in ``calibration_windows``.
        tokenizer: the model's.
        options: see ``CalibrationOptions``.
        model: needed for "self" only: the dense model, so that all that is compared reads the same.
        spread: take windows evenly spread over that part instead, which say more of it than its beginning.

    Raises:
        RelaxPruneError: as in ``calibration_windows``.
        FileNotFoundError: ``source`` looks like a path and does not exist.
    """
    options = options or CalibrationOptions(windows=None)
    text = open_source(source, options.held_out)
    if text is None:
        if model is None or options.windows is None:
            raise RelaxPruneError(
                f"source {SELF!r} is sampled from the dense model: give that model and a number of windows"
            )
        return _sampled(model, tokenizer, options, HELD_OUT_SEED)
    return _windows(text, "evaluation", _needed(tokenizer, source), options, spread)


def _sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    options: CalibrationOptions,
    seed: int,
    sampler: Sampler | None = None,
) -> TokenWindows:
    """Sample windows from the model itself, or take them from ``sampler``."""
    assert options.windows is not None  # checked by the caller
    start = None if tokenizer is None else tokenizer.bos_token_id
    sample = sampler or sample_windows
    tokens = sample(model, options.windows, options.length, seed, options.temperature, start)
    facts = {"seed": seed, "temperature": options.temperature, "start_token": start}
    return windows_from_tokens(tokens, SELF, facts)


def open_source(source: str, held_out: float = 0.25) -> TextSource | None:
    """Open a source of windows; needs no model, so a wrong source is refused before one is loaded.

    Returns:
        The text, as ``open_text`` opens it; None for "self", which is sampled.

    Raises:
        RelaxPruneError: as in ``open_text``.
        FileNotFoundError: ``source`` looks like a path and does not exist.
    """
    return None if source == SELF else open_text(source, held_out, [SELF])


def _needed(tokenizer: PreTrainedTokenizerBase | None, source: str) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise RelaxPruneError(f"source {source!r} is text, which needs a tokenizer: give the model's, or use {SELF!r}")
    return tokenizer


def _windows(
    text: TextSource, part: Part, tokenizer: PreTrainedTokenizerBase, options: CalibrationOptions, spread: bool = False
) -> TokenWindows:
    documents = text.documents(part)
    generator = torch.Generator().manual_seed(options.seed) if part == "calibration" else None
    if len(documents) == 1:
        tokens = _from_stream(text.name, part, encode(tokenizer, documents[0]), options, generator, spread)
    else:
        tokens = _one_per_document(text.name, part, documents, tokenizer, options)
    facts = {**text.description, "part": part, "seed": options.seed if part == "calibration" else None}
    return windows_from_tokens(tokens, text.name, facts)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Return the (tokens,) int64 ids of a text, with the tokenizer's default special tokens.

    Raises:
        RelaxPruneError: the tokenizer fails, which one that could be loaded may do.
    """
    with loader("tokenizer", True, "used"):
        # verbose=False: no warning that the text exceeds the model's context, since it is cut into windows.
        ids = tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int64)


def _from_stream(
    name: str,
    part: Part,
    stream: torch.Tensor,
    options: CalibrationOptions,
    generator: torch.Generator | None,
    spread: bool,
) -> torch.Tensor:
    """Cut ``stream`` (tokens,) into windows: in order without a generator, else a random choice at a random offset."""
    length, available = options.length, stream.numel() // options.length
    if available == 0:
        raise RelaxPruneError(
            f"text source {name!r} has {stream.numel()} tokens in its {part} part, too few for one window of {length}"
        )
    wanted = options.windows if options.windows is not None else available
    _check_enough(name, part, wanted, available, length)
    if generator is None:
        places = torch.arange(wanted) * (available if spread else wanted) // wanted
        return stream[: available * length].view(available, length)[places]
    offset = int(torch.randint(stream.numel() - available * length + 1, (1,), generator=generator))
    slots = stream[offset : offset + available * length].view(available, length)
    return slots[torch.randperm(available, generator=generator)[:wanted]]


def _one_per_document(
    name: str, part: Part, documents: Documents, tokenizer: PreTrainedTokenizerBase, options: CalibrationOptions
) -> torch.Tensor:
    """Take one random window from each of randomly chosen documents that are long enough."""
    if options.windows is None:
        raise RelaxPruneError(f"text source {name!r} has no useful end: give a number of windows")
    generator = torch.Generator().manual_seed(options.seed)
    taken: list[torch.Tensor] = []
    for index in torch.randperm(len(documents), generator=generator).tolist():
        text = documents[index]
        # A token stands for at least one byte: shorter texts need no tokenising. The slack covers special tokens.
        if len(text.encode("utf-8")) + 8 < options.length:
            continue
        ids = encode(tokenizer, text)
        if ids.numel() < options.length:
            continue
        start = int(torch.randint(ids.numel() - options.length + 1, (1,), generator=generator))
        taken.append(ids[start : start + options.length])
        if len(taken) == options.windows:
            return torch.stack(taken)
    _check_enough(name, part, options.windows, len(taken), options.length)
    return torch.stack(taken)


def _check_enough(name: str, part: Part, wanted: int, available: int, length: int) -> None:
    if wanted > available:
        raise RelaxPruneError(
            f"text source {name!r} has {available} windows of {length} tokens in its {part} part, and {wanted} were "
            "asked for: take fewer or shorter windows, or another text"
        )
