"""What ``relaxprune prune`` is asked to do, resolved once, and checked as far as possible without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relaxprune import RelaxPruneError
from relaxprune.costs.memory import TokenCounts
from relaxprune.models import LoadOptions
from relaxprune.options import PruneOptions
from relaxprune.problems.checks import number
from relaxprune.pruning import PruneRequest
from relaxprune.runs.dense_folder import DENSE_NAME
from relaxprune.solvers import make_solver
from relaxprune.text import CalibrationOptions, SourcePart, open_source, source_parts
from relaxprune.text.mixture import SELF, with_samples

from ..endings import door
from ..loading import load_options
from ..option_groups import weights_word
from ..rotating import RotateJob
from ..solver_options import parse_options
from .output import Output
from .words import CalibrationGroup, LayerGroup, MemoryGroup, PruneWords, RunGroup

# Windows that the model writes beside those of a text, as a share of them, so that masks hold on text of other kinds
# (docs/unseen-text.md); new weights need more of them.
SAMPLES, MORE_SAMPLES = 1 / 3, 1 / 2
_MOST_SAMPLES = 10
# Windows go through the model in batches of about this many tokens; part of the fingerprint, for sums depend on it.
_BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """One pruning run from the command line.

    Attributes:
        model: hub id, folder, .gguf file or alias.
        request: how much is pruned, by which solver, with which options.
        load: how the model is loaded.
        calibration: the calibration text.
        sources: what it consists of, each with a number of windows; with samples of the model, if that can write any.
        windows: how much calibration text, for ``calibration_windows``.
        refine_samples: how many windows the model writes for ``--refine`` and ``--reselect`` alone, if it can.
        samples_asked: whether it must be able to.
        run: the output folder, and how to run.
        memory: where weights and hidden states live.
        output: prints messages and events.
        batch_tokens: about how many tokens go through the model at once.
        rotation: what rotates the model before, None for nothing.
        rotated: what ``rotation.json`` says of the rotated model; None as long as there is none.
    """

    model: str
    request: PruneRequest
    load: LoadOptions
    calibration: CalibrationGroup
    sources: tuple[SourcePart, ...]
    windows: CalibrationOptions
    refine_samples: int
    samples_asked: bool
    run: RunGroup
    output: Output
    memory: MemoryGroup = field(default_factory=MemoryGroup)
    batch_tokens: int = _BATCH_TOKENS
    rotation: RotateJob | None = None
    rotated: Mapping[str, Any] | None = None

    @property
    def checkpoint(self) -> str:
        """What is loaded: the model, or what its rotation wrote."""
        return self.model if self.rotated is None else str(self.folder / DENSE_NAME)

    @property
    def folder(self) -> Path:
        """The output folder.

        Raises:
            RelaxPruneError: none is named.
        """
        if self.run.out is None:
            raise RelaxPruneError("give --out FOLDER for the pruned model, or --plan to see what would be pruned")
        return self.run.out

    @property
    def count(self) -> int:
        """Number of calibration windows."""
        return sum(part.windows or 0 for part in self.sources)

    @property
    def tokens(self) -> TokenCounts:
        """How much calibration text there is."""
        length = self.calibration.length
        at_once = min(self.count, self.windows_at_once) * length
        refining = self.refine_samples * length
        return TokenCounts(all=self.count * length, at_once=at_once, kinds=len(self.sources), refining=refining)

    @property
    def windows_at_once(self) -> int:
        """How many windows go through the model at once."""
        return batch_windows(self.calibration.length, self.batch_tokens)


def batch_windows(length: int, tokens: int = _BATCH_TOKENS) -> int:
    """Return how many windows of a length go through a model at once, of about so many tokens."""
    return max(1, tokens // length)


def resolve(model: str, words: PruneWords) -> PruneJob:
    """Return the job that the words of a command describe.

    Raises:
        RelaxPruneError: for everything that can be refused without the model, naming the option.
    """
    if words.run.discard_damaged and not words.run.resume:
        raise RelaxPruneError("--discard-damaged is given, but there is no --resume")
    text, request = words.calibration, _request(words)
    sources = calibration_sources(text, _default_share(request))
    load = replace(load_options(words.loading), offload=words.memory.offload)
    job = PruneJob(
        model=model,
        request=request,
        load=load,
        calibration=text,
        sources=sources,
        windows=CalibrationOptions(windows=text.windows, length=text.length, seed=words.run.seed),
        refine_samples=_refine_samples(words.layers, sum(part.windows or 0 for part in sources)),
        samples_asked=bool(words.layers.refine_samples),
        run=words.run,
        output=Output(words.run.json, words.run.quiet),
        memory=words.memory,
        rotation=_rotation(model, words, request, load),
    )
    _ = words.memory.memory_bytes, words.memory.shard_bytes  # refused before any work
    job.request.check_batches(-(-job.count // job.windows_at_once), job.count + job.refine_samples)
    with door():
        for part in job.sources:
            open_source(part.source)
    return job


def _rotation(model: str, words: PruneWords, request: PruneRequest, load: LoadOptions) -> RotateJob | None:
    """Return what rotates the model before; it learns from the text alone, unless that is what the model writes."""
    options = words.rotation.asked(request.target, words.run.seed)
    if options is None:
        return None
    if words.memory.memory is not None:
        raise RelaxPruneError(
            f"a model must be whole in memory to be rotated, got --memory {words.memory.memory}: rotate it first, with "
            "`relaxprune rotate`, then prune what that wrote"
        )
    text = words.calibration
    return RotateJob(
        model=model,
        options=options,
        load=load,
        sources=calibration_sources(replace(text, self_share=None), 0.0),
        windows=CalibrationOptions(windows=text.windows, length=text.length, seed=words.run.seed),
        windows_at_once=batch_windows(text.length),
        shard_bytes=words.memory.shard_bytes,
        output=Output(words.run.json, words.run.quiet),
        pruned_too=True,
    )


def _default_share(request: PruneRequest) -> float:
    """Return how many windows the model writes for each one of the text, unless it is said."""
    if request.solver.published.plain:
        return 0.0
    return MORE_SAMPLES if request.options.moves else SAMPLES


def calibration_sources(text: CalibrationGroup, share: float) -> tuple[SourcePart, ...]:
    """Return the sources of calibration text; samples of the model come beside a single one.

    Args:
        text: what was asked for.
        share: how many samples for each window of the text, unless it says.

    Raises:
        RelaxPruneError: samples are asked for beside a mixture, or are no share of the windows.
    """
    parts = source_parts(text.calibration, text.windows)
    bare = source_parts(text.calibration, None)
    mixed = len(parts) > 1 or bare[0].windows is not None or parts[0].source == SELF
    if text.self_share is not None:
        number("--self-share", text.self_share, 0)
        if text.self_share > _MOST_SAMPLES:
            raise RelaxPruneError(
                f"--self-share must be at most {_MOST_SAMPLES} samples for each window of the text, "
                f"got {text.self_share:g}"
            )
        if mixed:
            raise RelaxPruneError(
                f"--self-share is for a single text without a number of windows, got {text.calibration!r}: leave it "
                f"out, or write the mixture, as in builtin:32,{SELF}:32"
            )
    elif mixed:
        return parts
    found = with_samples(parts[0], share if text.self_share is None else text.self_share)
    if text.self_share and not any(part.source == SELF for part in found):
        raise RelaxPruneError(
            f"--self-share must be at least one window for {text.windows} of the text, got {text.self_share:g} of them"
        )
    return found


def _refine_samples(layers: LayerGroup, windows: int) -> int:
    """Return how many windows only ``--refine`` and ``--reselect`` read, by default as many as all others.

    Raises:
        RelaxPruneError: some are asked for, but neither of these.
    """
    asked = layers.refine_samples
    used = layers.refine or layers.reselect
    if asked and not used:
        raise RelaxPruneError(f"--refine-samples is {asked}, but --refine is 0: leave it out or give --refine")
    if not used:
        return 0
    return windows if asked is None else asked


def _request(words: PruneWords) -> PruneRequest:
    """Return how much is pruned, by which solver, with which options."""
    how, layers = words.how, words.layers
    name = how.named(bool(layers.refit))
    given = parse_options(name, how.words)
    asked = how.options(words.run.seed)
    if asked.polish == "auto":  # resolved, so that it is recorded
        asked = replace(asked, polish=make_solver(name, **given).polisher())
    options = PruneOptions(
        **vars(asked),
        include=tuple(layers.include),
        exclude=tuple(layers.exclude),
        certify=words.certify.certify,
        certify_rows=words.certify.certify_rows,
        statistics=words.statistics.options,
        objective=words.objective.options,
        permute=layers.permute,
        permute_by=layers.permute_by,
        weights=weights_word(layers.refit),
        damping=layers.damping,
        correct=layers.correct,
        tune=layers.tune,
        tune_by=layers.tune_by,
        tune_recipe=layers.tune_recipe,
        refine=layers.refine,
        refine_rate=layers.refine_rate,
        reselect=layers.reselect,
        reselect_solver=layers.reselect_solver,
        skip_misfits=layers.skip_misfits,
        regrow=layers.regrow,
    )
    target = replace(words.how_much.target, allocation=words.sharing.value)
    return PruneRequest.of(target, name, options, given)
