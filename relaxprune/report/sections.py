"""The sections of the report of one run, each from the plain values of ``run_content``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from relaxprune.pruning.tuning.gains import DIVERGENCE
from relaxprune.support.markup import number

from . import figures
from .content import flat
from .measured import perplexity_group
from .page import Group, Page, Section, Table, page_table, picture

Content = Mapping[str, Any]
_MOST_NAMES = 4  # that a line names


def run_page(content: Content) -> Page:
    """Return the page of one run."""
    tuning = [*([tuned] if content["tunings"] else []), *([reselected] if content.get("reselection") else [])]
    tuning += [refined] if content.get("refinement") else []
    choosing = [selected] if content.get("selected") else []
    shown = (quality, layers, convergence, *choosing, *tuning, masks, cost) if content["layers"] else ()
    return Page(
        title=f"Pruning {content['summary']['base_model'] or content['run']}",
        lead=[lead(content["summary"])],
        facts=facts(content["summary"]),
        notices=content["repeat"]["notices"],
        sections=[
            *(section(content) for section in shown),
            skipped(content),
            repeat(content),
        ],
    )


def amount(polytope: Mapping[str, Any] | None) -> str:
    """Return the requested sparsity or pattern in a few words."""
    shown = {key: value for key, value in (polytope or {}).items() if value not in (None, False)}
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )


def lead(summary: Content) -> str:
    """Return one sentence about the run."""
    moved = "; kept weights have new values" if summary["refitted"] else ""
    return (
        f"{summary['layers']} layers with {summary['weights']:,} weights, {summary['pruned_weights']:,} of them pruned "
        f"({amount(summary['polytope'])}) by the solver {summary['solver']}{moved}."
    )


def facts(summary: Content) -> list[tuple[str, str, str]]:
    """Return the numbers at the top, each with its name and its meaning."""
    proof = f"certified by {summary['certificate']}" if summary["certificate"] else "proven by the solver itself"
    seconds, memory = summary["seconds"], summary["peak_memory_gib"]
    lost = "share of a layer's output energy lost"
    if summary["objective"] != "gram":
        alone = number(summary["mean_gram_relative_error"])
        lost = f"of the objective {summary['objective']}; {alone} of a layer's output energy"
    return [
        ("Pruned", f"{summary['sparsity']:.1%}", "of the pruned layers' weights"),
        ("Mean relative error", number(summary["mean_relative_error"]), lost),
        ("Of Wanda's error", number(summary["mean_wanda_ratio"]), "mean over layers; below 1 is better"),
        ("Mean relative gap", number(summary["mean_relative_gap"]), f"{proof}; no mask is better by a larger share"),
        ("Time", "–" if seconds is None else f"{seconds:,.0f} s", "pruning, all stages"),
        ("Memory", "–" if memory is None else f"{memory:.2f} GiB", "largest resident size while pruning"),
    ]


def quality(content: Content) -> Section:
    """Perplexity, if it was measured, and error by method."""
    rows = content["error_by_role"]
    series = {
        title: {row["role"]: row[key] for row in rows}
        for title, key in (("Wanda", "wanda"), ("this run", "this"), ("proven bound", "bound"))
    }
    head = ("role", "layers", "Wanda", "this run", "proven bound", "relative gap")
    body = [(row["role"], row["layers"], row["wanda"], row["this"], row["bound"], row["relative_gap"]) for row in rows]
    drawn = figures.role_bars(series, "roles", "Mean relative error by role and method", "relative error")
    folder = shlex.quote(content["folder"])
    caption = "Relative error by method, mean by role. No mask with this sparsity or pattern can be below the bound."
    numbers = page_table("Mean relative error by role", head, body, folded=True)
    return Section(
        "quality",
        "Perplexity and error",
        groups=[
            perplexity_group(content["perplexity"]),
            Group("Error", [picture(drawn, caption)], [numbers]),
        ],
        text=[] if content["perplexity"] else [
            f"Perplexity was not measured. To add it to this report, run relaxprune eval {folder}, and for the model "
            f"before pruning relaxprune eval MODEL --record {folder}; then write the report again."
        ],
    )  # fmt: skip


def layers(content: Content) -> Section:
    """Heat maps of error and gap, and every layer's numbers."""
    items = content["layers"]
    maps = [
        ("relative_error", "Relative error", "the share of a layer's output energy that pruning loses", None),
        (
            "relative_gap",
            "Proven relative gap",
            "no mask is better by a larger share; near 1 the proof is weak",
            1.0,
        ),
        ("wanda_ratio", "Error over Wanda's", "below 1 is the gain over Wanda's mask on the same inputs", None),
    ]
    drawn = [
        picture(figures.heat_map(items, key, f"map-{key}", f"{title} by block and role", high), f"{title}: {meaning}.")
        for key, title, meaning, high in maps
    ]
    head = ("layer", "shape", "sparsity", "error", "Wanda's", "ratio", "gap", "status", "seconds")
    keys = ("sparsity", "relative_error", "wanda_relative_error", "wanda_ratio", "relative_gap", "status", "seconds")
    body = [(item["name"], f"{item['rows']}x{item['cols']}", *(item[key] for key in keys)) for item in items]
    numbers = page_table(f"All {len(items)} layers", head, body, folded=True)
    return Section("layers", "Error and proven gap by layer", groups=[Group("", drawn, [numbers])])


def convergence(content: Content) -> Section:
    """How the objective changed from Wanda's mask to the final one."""
    drawn = figures.phase_lines(content["layers"], "phases")
    caption = "Mean by role. Dotted: the bound, which no mask can be below; a bound below 0 is drawn at 0."
    explained = (
        "Objective at the end of each phase, over that of Wanda's mask on the same inputs: the relaxed mask (end of "
        "the convex phase), the unrounded one (after annealing), the rounded one, and the final one after the "
        "search that polishes it; if weights move, the final mask before and after they do. The step from "
        "unrounded to rounded is what rounding loses. The curve has no finer steps, since solvers keep no history "
        "of their iterations; phases that the solver does not have are left out."
    )
    return Section("convergence", "Convergence by phase", [explained], [Group("", [picture(drawn, caption)])])


def selected(content: Content) -> Section:
    """What each candidate for the shrinkage gave on text that was held out."""
    found = content["selected"]
    shares = [f"{share:g}" for share in found["candidates"]]
    blank = [None] * len(shares)
    held_out = [(name, *errors) for name, errors in found["held_out"].items()]
    means = [("mean", *(found["errors"] or blank)), *held_out, ("chosen for Grams", *found["counts"])]
    grams = [(item["name"], item["shrinkage"], *(item["errors"] or blank)) for item in found["grams"]]
    text = (
        "Every Gram was shrunk to its diagonal by the candidate that is best on text held out of it: some rows of its "
        "layers were solved on the rest of the text, and their error on the held-out Gram is divided by that of "
        "Wanda's mask there. Means are geometric. Errors, gaps and bounds on this page are of the shrunk Grams."
    )
    tables = [
        page_table("Error over Wanda's on held-out text", ("held out", *shares), means),
        page_table(f"All {len(grams)} Grams", ("first layer", "chosen", *shares), grams, folded=True),
    ]
    return Section("selected", "Shrinkage chosen on held-out text", [text], [Group("", [], tables)])


def tuned(content: Content) -> Section:
    """What tuning blocks as a whole gained."""
    head = ("block", "part", "passes kept", "tuned on, before", "after", "held out, before", "after", "seconds")
    keys = ("block", "part", "epochs", "error_before", "error_after", "held_out_before", "held_out_after", "seconds")
    text = (
        "Mean over tokens of the relative error of a block's outputs, on the windows it was tuned on and on those "
        "held out. The errors, gaps and objectives of layers on this page are from before their block was tuned."
    )
    tunings = [{**item, "part": item.get("part") or "all"} for item in content["tunings"]]
    body = [tuple(item[key] for key in keys) for item in tunings]
    return Section("tuned", "Blocks tuned as a whole", [text], [Group("", [], [page_table("By block", head, body)])])


def refined(content: Content) -> Section:
    """What refining the whole model gained."""
    found = content["refinement"]
    text = (
        f"Kept weights of all layers moved together towards the predictions of the dense model: {found['passes']} of "
        f"at most {content['repeat']['fingerprint']['settings'].get('refine')} passes kept, {found['steps']} steps, "
        f"{found['seconds']:.1f} s. The errors, bounds, gaps and certificates of layers on this page are of their "
        "masks, from before."
    )
    return Section("refined", "The model refined as a whole", [text], [Group("", [], [_gained(found)])])


def reselected(content: Content) -> Section:
    """What choosing masks again by the whole model gained."""
    found = content["reselection"]
    settings = content["repeat"]["fingerprint"]["settings"]
    text = (
        f"Masks of all layers chosen again by the gradient of the whole model (solver {settings['reselect_solver']}): "
        f"{found['rounds']} of at most {settings['reselect']} rounds kept, {sum(found['moved'].values())} weights "
        f"exchanged in {len(found['moved'])} layers, {found['seconds']:.1f} s. The errors and gaps of layers on this "
        "page are of the masks before; their bounds hold for all masks."
    )
    return Section("reselected", "Masks chosen again", [text], [Group("", [], [_gained(found)])])


def _gained(found: Mapping[str, Any]) -> Table:
    """Return the table of what a change of the whole model gained."""
    divergence = found["measure"] == DIVERGENCE
    what = "KL divergence from the dense model, nats a token" if divergence else "relative error of the model's output"
    head = ("windows", "number", "before", "after")
    body = [
        ("held out", found["held_out_windows"], found["held_out_before"], found["held_out_after"]),
        ("tuned on", found["tuned_windows"], found["tuned_before"], found["tuned_after"]),
    ]
    return page_table(what, head, body)


def masks(content: Content) -> Section:
    """Where the kept weights are."""
    items = content["layers"]
    groups, text = [], []
    roles = list(dict.fromkeys(item["role"] for item in items))
    for key, title in (("cols", "Columns (inputs)"), ("rows", "Rows (outputs)"), ("heads", "Attention heads")):
        shown = [role for role in roles if _spreads(items, role, key)]
        drawn = [
            picture(figures.density_map(items, key, f"density-{key}-{place}", role), f"{title} of {role}, by block.")
            for place, role in enumerate(shown)
        ]
        if drawn:
            groups.append(Group(title, drawn))
        elif key == "rows":
            text.append("All rows of a layer keep the same share, as the sparsity or pattern asks.")
        elif key == "heads":
            known = any(item["density"]["heads"] for item in items)
            why = "they keep equal shares" if known else "config.json does not say which rows belong to which head"
            text.append(f"No picture of attention heads: {why}.")
    pictures = [
        picture(
            figures.mask_picture(item["shares"], item["rows"], item["cols"], f"mask{place}"),
            f"{item['name']}, {item['rows']} x {item['cols']}.",
        )
        for place, item in enumerate(content["masks"])
    ]
    groups.insert(0, Group("Whole masks: the layer with the largest relative error of each role (up to six)", pictures))
    intro = "Share of weights kept, neighbours averaged into at most 96 bins. Each line is a layer; scales differ."
    return Section("masks", "Density of the masks", [intro, *text], groups)


def _spreads(items: Sequence[Content], role: str, key: str) -> bool:
    """Return whether shares differ within any layer of a role."""
    shares = [item["density"][key] for item in items if item["role"] == role and item["density"][key]]
    return any(max(row) - min(row) > 1e-9 for row in shares)


def cost(content: Content) -> Section:
    """Seconds by stage, by block and by layer."""
    stages, blocks = content["seconds"]["stages"], content["seconds"]["blocks"]
    drawn = [
        picture(figures.stage_bars({content["run"]: stages}, "stages"), "Seconds by stage."),
        picture(figures.block_bars(blocks, "blocks"), "Seconds of solving (and certifying) by block."),
        picture(
            figures.heat_map(content["layers"], "seconds", "map-seconds", "Seconds by block and role"),
            "Seconds of solving by layer.",
        ),
    ]
    total = stages.get("total") or 0.0
    body = [(stage, spent, f"{spent / total:.1%}" if total else "–") for stage, spent in stages.items()]
    numbers = page_table("Seconds by stage", ("stage", "seconds", "share"), body)
    machine = content["summary"]["machine"]
    return Section("cost", "Cost", [f"{machine}."] if machine else [], [Group("", drawn, [numbers])])


def skipped(content: Content) -> Section:
    """What was not pruned and why."""
    reasons: dict[str, list[str]] = {}
    for item in content["skipped"]:
        reasons.setdefault(item["reason"], []).append(item["name"])
    if not reasons:
        return Section("skipped", "Not pruned", ["Every matrix of the model was pruned."])
    body = [
        (reason, len(names), ", ".join(names) if len(names) <= _MOST_NAMES else f"{names[0]} to {names[-1]}")
        for reason, names in reasons.items()
    ]
    tables = [page_table("Not pruned, and why", ("why", "number", "which"), body)]
    if any(len(names) > _MOST_NAMES for names in reasons.values()):
        every = [(name, reason) for reason, names in reasons.items() for name in names]
        tables.append(page_table(f"All {len(every)}", ("which", "why"), every, folded=True))
    return Section("skipped", "Not pruned", groups=[Group("", [], tables)])


def repeat(content: Content) -> Section:
    """Everything needed to repeat the run."""
    facts = content["repeat"]
    leaves = [(key, written(value)) for key, value in flat(facts["fingerprint"]).items()]
    files = [(name, entry.get("bytes"), entry.get("sha256")) for name, entry in facts["files"].items()]
    return Section(
        "repeat",
        "To repeat the run",
        [f"Finished {facts['finished']}. Runs with equal fingerprints give the same masks, bit for bit, on one kind of "
         "machine."],
        [Group("", [], [
            page_table("Fingerprint", ("key", "value"), leaves, folded=True),
            page_table("Files", ("file", "bytes", "SHA-256"), files, folded=True),
        ])],
        [str(facts["command"])],
    )  # fmt: skip


def written(value: Any) -> str:
    """Return a setting as JSON, a string without its quotes."""
    return value if isinstance(value, str) else json.dumps(value)
