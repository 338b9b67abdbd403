"""``evaluation.json``, next to a run's record: what was measured of its model, and of others to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relaxprune.evaluation import PairedDifference
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.durable import write_json
from relaxprune.support.folder_lock import folder_lock, refuse_held_folder
from relaxprune.support.json_files import JsonFormat, Maybe, Values, present, read_document
from relaxprune.support.sentences import damaged

from .run_record import RECORD_NAME, now, read_record

if TYPE_CHECKING:
    from relaxprune.evaluation import DivergenceResult
    from relaxprune.evaluation.perplexity import PerplexityResult
    from relaxprune.text.token_windows import TokenWindows

EVALUATION_NAME = "evaluation.json"
_WAIT_S = 10.0  # for another evaluation that is being recorded
_DIVERGENCE = {
    "mean": float,
    "standard_error": Maybe(float),
    "window_means": [float],
    "against": str,
    "against_sha256": str,
}
_RESULT = {
    **{name: str for name in ("method", "model", "text", "tokens_sha256", "measured")},
    **{name: float for name in ("perplexity", "mean_loss")},
    "own": bool,
    "windows": int,
    "length": int,
    "versions": Values(str),
    # Came later than the first version.
    "divergence": Maybe(_DIVERGENCE),
}
_FORM = JsonFormat(version=1, shape={"results": [_RESULT]}, advice="delete it and run relaxprune eval again")
DENSE, OTHER = "dense", "other"


@dataclass(frozen=True)
class KeptDivergence:
    """A KL divergence from the dense model, as a run folder keeps it.

    Attributes:
        mean: in nats a token.
        standard_error: of the mean over windows; None for a single one.
        window_means: of each window, in order.
        against: the dense model.
        against_sha256: of its weights, in the precision of the evaluation.
    """

    mean: float
    standard_error: float | None
    window_means: tuple[float, ...]
    against: str
    against_sha256: str

    @classmethod
    def of(cls, result: DivergenceResult, against: str, against_sha256: str) -> KeptDivergence:
        """Return what is kept of a result, with the dense model's name and the SHA-256 of its weights."""
        return cls(result.mean, result.standard_error, result.window_means, against, against_sha256)

    def minus(self, other: KeptDivergence) -> PairedDifference:
        """Return this divergence less another's on the same windows."""
        return PairedDifference.of(self.window_means, other.window_means)


@dataclass(frozen=True)
class Evaluation:
    """A perplexity, the model that has it, and what it was measured on.

    Attributes:
        method: where the weights come from: a solver's name, "dense" for exactly the weights that the run pruned, or
            "other" for a model that is neither those nor a run's.
        own: whether the model is the folder's own pruned one.
        model: what was evaluated.
        text: where the held-out text comes from.
        tokens_sha256: of the token windows; results with different ones do not compare.
        windows: how many there are.
        length: tokens in each.
        perplexity: the exponential of the mean over windows of their mean cross-entropy.
        mean_loss: that mean, in nats.
        measured: when, in UTC.
        versions: of relaxprune, torch and transformers.
        divergence: from the dense model, if it was measured.
    """

    method: str
    own: bool
    model: str
    text: str
    tokens_sha256: str
    windows: int
    length: int
    perplexity: float
    mean_loss: float
    measured: str
    versions: Mapping[str, str]
    divergence: KeptDivergence | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What a result shares with the older ones that it replaces."""
        return (self.own, *(() if self.own else (self.method, self.model)), self.tokens_sha256)


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Return the results recorded in a run folder, none if nothing was evaluated.

    Raises:
        RelaxPruneError: the file is damaged or has another schema version.
    """
    path = folder / EVALUATION_NAME
    if not present(path):
        return []
    return [_evaluation(path, item) for item in read_document(path, _FORM)["results"]]


def _evaluation(path: Path, item: Mapping[str, Any]) -> Evaluation:
    """Return an entry of the file, whose shape has been checked."""
    found: dict[str, Any] = {field.name: item.get(field.name) for field in fields(Evaluation)}
    if (kept := found["divergence"]) is not None:
        means = tuple(kept["window_means"])
        if not means or len(means) != item["windows"]:
            reason = f"it has {len(means)} window means of {item['windows']} windows"
            raise damaged(repr(str(path)), reason, _FORM.advice)
        values = {field.name: kept.get(field.name) for field in fields(KeptDivergence)}
        found["divergence"] = KeptDivergence(**{**values, "window_means": means})
    return Evaluation(**found)


def record_evaluation(folder: Path, result: Evaluation) -> None:
    """Add a result to those in a run folder, durably; it replaces an older one of the same model on the same text.

    A divergence stays if the same weights are measured again without a dense model.
    """
    with folder_lock(folder, _WAIT_S):
        before = read_evaluations(folder)
        for old in before:
            if old.key == result.key and result.divergence is None and old.mean_loss == result.mean_loss:
                result = replace(result, divergence=old.divergence)
        kept = [item for item in before if item.key != result.key]
        content = {"schema_version": _FORM.version, "results": [asdict(item) for item in (*kept, result)]}
        write_json(folder / EVALUATION_NAME, content)


def run_folder_of(model: str, record: Path | None) -> Path | None:
    """Return the run folder to record a perplexity in: ``record``, or the model's own if it is one; else None.

    Raises:
        RelaxPruneError: the one named is no finished run, or one is under way in it.
    """
    if record is not None and not (record / RECORD_NAME).is_file():
        raise RelaxPruneError(f"--record must name a folder that `relaxprune prune` wrote, got {str(record)!r}")
    own = Path(model)
    folder = record or (own if (own / RECORD_NAME).is_file() else None)
    if folder is not None:
        refuse_held_folder(folder)
    return folder


def evaluation_of(
    model: str,
    folder: Path,
    result: PerplexityResult,
    tokens: TokenWindows,
    weights_sha256: str,
    divergence: KeptDivergence | None = None,
) -> Evaluation:
    """Return the record of a perplexity, and of a divergence if there is one.

    Args:
        model: what was evaluated.
        folder: the run folder that it is recorded in.
        result: the perplexity.
        tokens: what it was measured on.
        weights_sha256: of the evaluated weights, in the precision of the evaluation.
        divergence: of the same model on the same tokens.
    """
    own = Path(model).resolve() == folder.resolve()
    return Evaluation(
        method=_method(model, folder, weights_sha256),
        own=own,
        model=Path(model).resolve().name if own else model,
        text=tokens.source,
        tokens_sha256=tokens.sha256,
        windows=result.windows,
        length=result.length,
        perplexity=result.perplexity,
        mean_loss=result.mean_loss,
        measured=now(),
        versions={name: version(name) for name in ("relaxprune", "torch", "transformers")},
        divergence=divergence,
    )


def _method(model: str, folder: Path, weights_sha256: str) -> str:
    """Return where weights come from: a run's solver, no pruning, or something that the folder does not know."""
    made = Path(model) / RECORD_NAME
    if made.is_file():
        return str(read_record(made.parent)["report"]["solver"])
    pruned = read_record(folder)["fingerprint"]["model"]["weights_sha256"]
    return DENSE if weights_sha256 == pruned else OTHER
