"""What ``relaxprune eval`` has measured of runs: perplexities, and divergences from the dense model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from relaxprune.evaluation.divergence import with_error
from relaxprune.runs.evaluation_file import DENSE, Evaluation
from relaxprune.runs.finished_run import FinishedRun

from . import figures
from .page import Group, Table, page_table, picture

Content = Mapping[str, Any]


def perplexity_group(results: Sequence[Content]) -> Group:
    """One figure per evaluation text, since perplexities compare only on the same one, and a table of all."""
    texts: dict[str, list[Content]] = {}
    for item in results:
        texts.setdefault(item["tokens_sha256"], []).append(item)
    drawn = []
    for place, rows in enumerate(texts.values()):
        first = rows[0]
        caption = f"Perplexity on {first['windows']} windows of {first['length']} tokens, {first['text']}, held out."
        drawn.append(picture(figures.perplexity_bars(rows, f"perplexity{place}"), caption))
    head, lines = measured_cells(results)
    title = "KL: mean divergence from the dense model, nats a token" if "KL" in head else "Perplexity"
    return Group("Perplexity" if results else "", drawn, [page_table(title, head, lines)] if results else [])


def measured_cells(results: Sequence[Content]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return the head and the lines of a table of evaluations, with their divergences where there are some."""
    names = ("method", "perplexity", "windows", "length", "text", "model")
    lines = [tuple(item[name] for name in names) for item in results]
    if not any(item["divergence"] for item in results):
        return names, lines
    kept = [item["divergence"] or {} for item in results]
    more = [tuple(item.get(name) for name in ("mean", "standard_error", "against")) for item in kept]
    head = (*names[:2], "KL", "standard error", "from", *names[2:])
    return head, [(*line[:2], *own, *line[2:]) for line, own in zip(lines, more, strict=True)]


def common_perplexity(runs: Mapping[str, FinishedRun]) -> dict[str, Any] | None:
    """Return the perplexities of the runs' models on a text that all were evaluated on; None if there is none."""
    found = {name: {item.tokens_sha256: item for item in run.evaluations if item.own} for name, run in runs.items()}
    first = next(iter(found.values()))
    for sha256, item in reversed(first.items()):
        if all(sha256 in items for items in found.values()):
            where = f"{item.windows} windows of {item.length} tokens, {item.text}, held out"
            values = {name: items[sha256].perplexity for name, items in found.items()}
            return {"where": where, "values": values, "dense": _dense(runs.values(), sha256)}
    return None


def _dense(runs: Collection[FinishedRun], sha256: str) -> float | None:
    """Return the perplexity of the weights that all runs pruned; None if they differ or it was not measured."""
    if len({run.record["fingerprint"]["model"]["weights_sha256"] for run in runs}) > 1:
        return None
    kept = [item for run in runs for item in run.evaluations if item.method == DENSE and item.tokens_sha256 == sha256]
    return kept[-1].perplexity if kept else None


def common_divergences(runs: Mapping[str, FinishedRun]) -> list[dict[str, Any]]:
    """Return the divergences of the runs' models on each text on which all were measured against one dense model.

    Each with the paired differences of the other runs' less the first one's.
    """
    found = [_divergences(run) for run in runs.values()]
    shared = [key for key in found[0] if all(key in items for items in found)]
    return [_paired(dict(zip(runs, (items[key] for items in found), strict=True))) for key in shared]


def _divergences(run: FinishedRun) -> dict[tuple[str, str], Evaluation]:
    """Return the evaluations of a run's own model that have a divergence, by tokens and dense weights."""
    return {
        (item.tokens_sha256, item.divergence.against_sha256): item
        for item in run.evaluations
        if item.own and item.divergence is not None
    }


def _paired(items: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the divergences of runs on one text, and their differences from the first run's."""
    kept = {name: item.divergence for name, item in items.items() if item.divergence is not None}
    first, *others = kept
    item = items[first]
    return {
        "text": item.text,
        "where": f"{item.windows} windows of {item.length} tokens, held out",
        "against": kept[first].against,
        "values": {name: {"mean": own.mean, "standard_error": own.standard_error} for name, own in kept.items()},
        "differences": {name: asdict(kept[name].minus(kept[first])) for name in others},
    }


def divergence_table(found: Sequence[Content]) -> Table:
    """Return a table with a line for each text: every run's divergence, then the differences from the first run's."""
    first, *others = found[0]["values"]
    head = ("text", "windows", *found[0]["values"], *(f"{name} less {first}" for name in others))
    lines = [
        (
            item["text"],
            item["where"],
            *(with_error(own["mean"], own["standard_error"]) for own in item["values"].values()),
            *(with_error(own["mean"], own["standard_error"]) for own in item["differences"].values()),
        )
        for item in found
    ]
    title = (
        f"KL: mean divergence from the dense model, {found[0]['against']}, nats a token ± standard error over windows; "
        "differences are paired window by window, and below 0 where the run is closer to the dense model"
    )
    return page_table(title, head, lines)
