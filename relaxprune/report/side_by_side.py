"""The report of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relaxprune import __version__
from relaxprune.masks.difference import compare_masks
from relaxprune.runs.fingerprint import as_now
from relaxprune.runs.finished_run import FinishedRun
from relaxprune.support.markup import number

from . import figures
from .content import KIND, SCHEMA_VERSION, flat, run_content
from .measured import common_divergences, common_perplexity, divergence_table, measured_cells
from .page import Group, Page, Picture, Section, page_table, picture
from .sections import amount, written

Content = Mapping[str, Any]
# What must be equal for numbers to compare: dotted names in the fingerprint, and what a difference means.
_GROUNDS = {
    "model.weights_sha256": "the runs pruned different weights: neither errors nor perplexities compare",
    "calibration.sha256": "the runs saw different calibration text: errors are on different Gram matrices",
    "settings.statistics": "the runs weigh their calibration text differently: errors are on different Gram matrices",
    "settings.objective": "the runs minimise different objectives: errors and gaps are of different things",
    "settings.weights": "weights moved in only some of the runs: their gaps do not prove the same thing",
    "settings.damping": "the runs have different damping, which is part of the error if weights moved",
    "settings.device": "the runs computed on different devices: seconds do not compare",
    "settings.threads": "the runs computed with different numbers of threads: seconds do not compare",
}
_BARS = {
    "mean_relative_error": ("mean relative error", "The share of a layer's output energy that pruning loses."),
    "mean_wanda_ratio": ("error over Wanda's", "On the same inputs, layer by layer; below 1 is the gain."),
    "mean_relative_gap": ("mean relative gap", "No mask with the run's pattern is better by a larger share."),
    "seconds": ("seconds", "Pruning, all stages."),
    "peak_memory_gib": ("peak memory, GiB", "Largest resident size of the process that pruned."),
}
_METRICS = {
    "base_model": "model",
    "solver": "solver",
    "layers": "layers",
    "sparsity": "sparsity",
    "mean_relative_error": "mean relative error",
    "mean_wanda_relative_error": "that of Wanda's masks",
    "mean_wanda_ratio": "error over Wanda's",
    "mean_relative_gap": "mean relative gap",
    "certificate": "certificate",
    "seconds": "seconds",
    "peak_memory_gib": "peak memory, GiB",
}


def comparison_content(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return everything that a comparison says, as plain JSON values."""
    names = labels([run.name for run in runs])
    named = dict(zip(names, runs, strict=True))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "relaxprune": __version__,
        "runs": {name: run_content(run, masks=False) for name, run in named.items()},
        "perplexity": common_perplexity(named),
        "divergence": common_divergences(named),
        "differences": differing_settings({name: as_now(run.record["fingerprint"]) for name, run in named.items()}),
        "overlap": [
            {"run": name, "with": names[0], **compare_masks(runs[0].masks, run.masks).to_dict()}
            for name, run in zip(names[1:], runs[1:], strict=True)
        ],
    }


def labels(names: Sequence[str]) -> list[str]:
    """Return the runs' names, with a number after each repeated one."""
    found: list[str] = []
    for name in names:
        rival = 1
        while (label := name if rival == 1 else f"{name} ({rival})") in found:
            rival += 1
        found.append(label)
    return found


def differing_settings(fingerprints: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that are not the same in all runs: dotted name -> run -> value, None if it has none."""
    leaves = {name: flat(value) for name, value in fingerprints.items()}
    keys = dict.fromkeys(key for found in leaves.values() for key in found)
    values = {key: {name: found.get(key) for name, found in leaves.items()} for key in keys}
    return {key: row for key, row in values.items() if any(item != next(iter(row.values())) for item in row.values())}


def incomparable(content: Content) -> list[str]:
    """Return sentences on which numbers of the runs do not compare, and why."""
    said = [
        meaning
        for ground, meaning in _GROUNDS.items()
        if any(key == ground or key.startswith(f"{ground}.") for key in content["differences"])
    ]
    if len({tuple(sorted(layer["name"] for layer in run["layers"])) for run in content["runs"].values()}) > 1:
        said.append("the runs pruned different layers: their means are over different sets")
    if len({run["summary"]["machine"] for run in content["runs"].values()} - {None}) > 1:
        said.append("the runs were made on different machines: seconds and memory do not compare")
    return said


def comparison_page(content: Content) -> Page:
    """Return the page of a comparison."""
    runs: Mapping[str, Content] = content["runs"]
    return Page(
        title=f"{len(runs)} runs side by side",
        lead=[", ".join(runs)],
        facts=[],
        notices=[
            *incomparable(content),
            *(f"{name}: {text}" for name, run in runs.items() for text in run["repeat"]["notices"]),
        ],
        sections=[
            _summary(runs, content["perplexity"], content["divergence"]),
            _settings(content["differences"], list(runs)),
            _errors(runs),
            _overlap(content["overlap"]),
            _cost(runs),
            _commands(runs),
        ],
    )


def _summary(runs: Mapping[str, Content], perplexity: Content | None, divergences: Sequence[Content]) -> Section:
    """One bar and one column for each run."""
    rows = [(title, *(number(run["summary"][key]) for run in runs.values())) for key, title in _METRICS.items()]
    rows.insert(3, ("asked for", *(amount(run["summary"]["polytope"]) for run in runs.values())))
    bars = [
        picture(figures.run_bars({run: item["summary"][key] for run, item in runs.items()}, key, label), caption)
        for key, (label, caption) in _BARS.items()
        if all(item["summary"][key] is not None for item in runs.values())
    ]
    text = []
    if perplexity is None:
        text = ["There is no text on which all of these runs were evaluated: relaxprune eval DIR records perplexities."]
    else:
        rows.append(("perplexity", *(number(value) for value in perplexity["values"].values())))
        drawn = figures.run_bars(perplexity["values"], "perplexity", "perplexity")
        dense = "" if perplexity["dense"] is None else f" Before pruning: {number(perplexity['dense'])}."
        bars.insert(0, picture(drawn, f"{perplexity['where']}.{dense}"))
    tables = [page_table("Summary", ("", *runs), rows)]
    if divergences:
        tables.append(divergence_table(divergences))
    measured = [(name, item) for name, run in runs.items() for item in run["perplexity"]]
    if measured:
        head, cells = measured_cells([item for _, item in measured])
        lines = [(name, *line) for (name, _), line in zip(measured, cells, strict=True)]
        title = "Every measurement; they compare on the same text and windows"
        tables.append(page_table(title, ("recorded in", *head), lines))
    return Section("summary", "Summary", text, [Group("", bars, tables)])


def _settings(found: Content, names: Sequence[str]) -> Section:
    """The settings in which the runs differ."""
    if not found:
        return Section("settings", "Settings that differ", ["None: the runs have equal fingerprints."])
    rows = [(key, *(written(row[name]) for name in names)) for key, row in found.items()]
    return Section(
        "settings",
        "Settings that differ",
        ["All others are equal. Errors of runs with other calibration text or statistics do not compare."],
        [Group("", [], [page_table("Settings that differ", ("setting", *names), rows)])],
    )  # fmt: skip


def _errors(runs: Mapping[str, Content]) -> Section:
    """Error by role, and heat maps of error and gap on one scale for all runs."""
    series = {name: {row["role"]: row["this"] for row in run["error_by_role"]} for name, run in runs.items()}
    bars = figures.role_bars(series, "roles", "Mean relative error by role and run", "relative error")
    groups = [Group("", [picture(bars, "Relative error, mean by role."), *_scatter(runs)])]
    for key, title in (("relative_error", "Relative error"), ("relative_gap", "Proven relative gap")):
        seen = [layer[key] for run in runs.values() for layer in run["layers"] if layer[key] is not None]
        top = max(seen, default=1.0)
        drawn = [
            picture(
                figures.heat_map(run["layers"], key, f"{key}-{place}", f"{title}, {name}", top), f"{title}, {name}."
            )
            for place, (name, run) in enumerate(runs.items())
        ]
        groups.append(Group(f"{title}, one scale", drawn))
    return Section("errors", "Error and proven gap", groups=groups)


def _scatter(runs: Mapping[str, Content]) -> list[Picture]:
    """Every layer that all runs pruned, if any of them loses something."""
    tables = [{layer["name"]: layer["relative_error"] for layer in run["layers"]} for run in runs.values()]
    errors = [[table[name] for table in tables] for name in tables[0] if all(name in table for table in tables)]
    if not any(min(row) > 0 for row in errors):
        return []
    caption = "Relative error, layer by layer. Below the line: the layer loses less than in the first run."
    return [picture(figures.scatter(list(runs), errors, "scatter"), caption)]


def _overlap(found: Sequence[Content]) -> Section:
    """How much the masks have in common."""
    head = ("masks of", "and of", "layers in both", "kept by both / by either", "same entries")
    rows = [(item["with"], item["run"], len(item["layers"]), item["jaccard"], item["agreement"]) for item in found]
    text = "Of the weights that either mask keeps, the share that both keep; the share of entries on which they agree."
    return Section("overlap", "Overlap of the masks", [text], [Group("", [], [page_table("Overlap", head, rows)])])


def _cost(runs: Mapping[str, Content]) -> Section:
    """Seconds by stage, and where they were spent."""
    machines = {name: str(run["summary"]["machine"]) for name, run in runs.items() if run["summary"]["machine"]}
    one = len(set(machines.values())) == 1 and len(machines) == len(runs)
    text = [f"{next(iter(machines.values()))}."] if one else [f"{name}: {where}." for name, where in machines.items()]
    drawn = figures.stage_bars({name: run["seconds"]["stages"] for name, run in runs.items()}, "stages")
    return Section("cost", "Cost", text, [Group("", [picture(drawn, "Seconds by stage.")])])


def _commands(runs: Mapping[str, Content]) -> Section:
    """The command of each run."""
    return Section("repeat", "To repeat the runs", code=[str(run["repeat"]["command"]) for run in runs.values()])
