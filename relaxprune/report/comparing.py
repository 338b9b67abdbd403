"""The report of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import relaxprune

from ..markup import number
from ..masks.comparing import compare_masks
from . import figures
from .content import KIND, SCHEMA_VERSION, flat, run_content
from .page import Group, Page, Section, picture, table
from .reading import Run
from .sections import amount

Content = Mapping[str, Any]
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
}


def comparison_content(runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything that a comparison says, as plain JSON values."""
    names = labels([run.name for run in runs])
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "relaxprune": relaxprune.__version__,
        "runs": {name: run_content(run) for name, run in zip(names, runs, strict=True)},
        "differences": differences({name: run.record["fingerprint"] for name, run in zip(names, runs, strict=True)}),
        "overlap": [
            {"run": name, "with": names[0], **compare_masks(runs[0].masks, run.masks).to_dict()}
            for name, run in zip(names[1:], runs[1:], strict=True)
        ],
    }


def labels(names: Sequence[str]) -> list[str]:
    """Return the runs' names, with a number behind each that is not the first of its name."""
    found: list[str] = []
    for name in names:
        rival = 1
        while (label := name if rival == 1 else f"{name} ({rival})") in found:
            rival += 1
        found.append(label)
    return found


def differences(fingerprints: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that are not the same in all runs: dotted name -> run -> value, None where it has none."""
    leaves = {name: flat(value) for name, value in fingerprints.items()}
    keys = dict.fromkeys(key for found in leaves.values() for key in found)
    values = {key: {name: found.get(key) for name, found in leaves.items()} for key in keys}
    return {key: row for key, row in values.items() if any(item != next(iter(row.values())) for item in row.values())}


def comparison_page(content: Content) -> Page:
    """Return the page of a comparison."""
    runs: Mapping[str, Content] = content["runs"]
    return Page(
        title=f"{len(runs)} runs side by side",
        lead=[", ".join(runs)],
        facts=[],
        notices=[f"{name}: {text}" for name, run in runs.items() for text in run["repeat"]["notices"]],
        sections=[
            _summary(runs),
            _settings(content["differences"], list(runs)),
            _errors(runs),
            _overlap(content["overlap"]),
            _cost(runs),
            _commands(runs),
        ],
    )


def _summary(runs: Mapping[str, Content]) -> Section:
    """One column for each run."""
    rows = [(title, *(number(run["summary"][key]) for run in runs.values())) for key, title in _METRICS.items()]
    rows.insert(3, ("asked for", *(amount(run["summary"]["polytope"]) for run in runs.values())))
    measured = [
        (name, item["method"], item["perplexity"], item["windows"], item["length"], item["text"])
        for name, run in runs.items()
        for item in run["perplexity"]
    ]
    head = ("recorded in", "method", "perplexity", "windows", "length", "text")
    tables = [table("Summary", ("", *runs), rows)]
    text = [] if measured else ["No perplexity is recorded in these folders: relaxprune eval DIR records it."]
    if measured:
        tables.append(table("Perplexity, comparable on the same text and windows", head, measured))
    return Section("summary", "Summary", text, [Group("", [], tables)])


def _settings(found: Content, names: Sequence[str]) -> Section:
    """The settings in which the runs differ."""
    if not found:
        return Section("settings", "Settings that differ", ["None: the runs have equal fingerprints."])
    rows = [(key, *(str(row[name]) for name in names)) for key, row in found.items()]
    return Section(
        "settings",
        "Settings that differ",
        ["All others are equal. Errors of runs with other calibration text or statistics do not compare."],
        [Group("", [], [table("Settings that differ", ("setting", *names), rows)])],
    )  # fmt: skip


def _errors(runs: Mapping[str, Content]) -> Section:
    """Error by role, and heat maps of error and gap on one scale for all runs."""
    series = {name: {row["role"]: row["this"] for row in run["error_by_role"]} for name, run in runs.items()}
    bars = figures.role_bars(series, "roles", "Mean relative error by role and run", "relative error")
    groups = [Group("", [picture(bars, "Relative error, mean by role.")])]
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


def _overlap(found: Sequence[Content]) -> Section:
    """How much the masks have in common."""
    head = ("masks of", "and of", "layers in both", "kept by both / by either", "same entries")
    rows = [(item["with"], item["run"], len(item["layers"]), item["jaccard"], item["agreement"]) for item in found]
    text = "Of the weights that either mask keeps, the share that both keep; the share of entries on which they agree."
    return Section("overlap", "Overlap of the masks", [text], [Group("", [], [table("Overlap", head, rows)])])


def _cost(runs: Mapping[str, Content]) -> Section:
    """Seconds by stage."""
    drawn = figures.stage_bars({name: run["seconds"]["stages"] for name, run in runs.items()}, "stages")
    return Section("cost", "Cost", groups=[Group("", [picture(drawn, "Seconds by stage.")])])


def _commands(runs: Mapping[str, Content]) -> Section:
    """The command of each run."""
    return Section("repeat", "To repeat the runs", code=[str(run["repeat"]["command"]) for run in runs.values()])
