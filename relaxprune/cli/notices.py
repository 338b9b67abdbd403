"""What a user must see of a finished run: one sentence each, kept in the result, with exit code 3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from relaxprune import Status
from relaxprune.pruning.prune_report import MISFIT, OTHER_SIDE

if TYPE_CHECKING:
    from relaxprune import PruneReport

_NAMED = 3


def report_notices(report: PruneReport) -> list[str]:
    """Return the notices of a model's report.

    They are: layers of the plan that no calibration text reached; layers that do not fit; layers with too few tiles of
    rows for one to be dense; a side of the model that was left alone; less than half of the matrices' weights pruned;
    layers whose solver broke down, so that their mask is the starting one; a published method of which a part was left
    out; blocks that could not be replayed, so that the whole model was run instead; layers that were asked to correct
    errors of earlier ones but do not; layers that keep the Gram alone where the objective has more; and orders of
    channels that were put back because they changed what a block computes.
    """
    notices = []
    if report.unreached:
        notices.append(
            f"{len(report.unreached)} layers were not pruned because no calibration text reached them: "
            f"{_some(report.unreached)}"
        )
    if misfits := report.skipped_for(MISFIT):
        notices.append(
            f"{len(misfits)} layers do not fit and were not pruned ({_some(layer.name for layer in misfits)}): "
            f"{misfits[0].reason.removeprefix(f'{MISFIT}: ')}"
        )
    if few := _without_dense(report):
        notices.append(
            f"{len(few)} layers have no dense rows ({_some(few)}): the share of dense tiles in pattern "
            f"{report.polytope['pattern']!r} is less than one tile there"
        )
    if others := report.skipped_for(OTHER_SIDE):
        notices.append(
            f"one side of the model was not pruned: {len(others)} layers ({_some(layer.name for layer in others)}), "
            "which an include pattern prunes where the calibration reaches them"
        )
    if report.coverage is not None and report.coverage.is_low:
        notices.append(
            f"only {report.coverage.covered:.1%} of the weights of the model's matrices are in pruned layers "
            f"({report.coverage.layers} of {report.coverage.of.matrices} matrices): the report lists the others"
        )
    for status in Status:
        layers = [layer.name for layer in report.layers if layer.cost.status == status.name]
        if layers and status_notice(status):
            notices.append(f"{len(layers)} layers ended as {status.name} ({_some(layers)}): {status.value}")
    notices += left_out_notices(report.solver, report.left_out)
    method, _, reason = report.propagation.partition(": ")
    if reason:
        notices.append(f"the inputs of the blocks were found by the method {method!r}, not by replay: {reason}")
    apart = [layer.name for layer in report.layers if layer.loss.corrected == 0 and report.options.get("correct")]
    if apart:
        notices.append(
            f"{len(apart)} layers read other tokens in the dense model ({_some(apart)}): they correct no errors of "
            "earlier layers"
        )
    plain = [layer.name for layer in report.layers if layer.inputs.minimises == "gram"]
    if plain and (report.options.get("objective") or {}).get("strength"):
        notices.append(
            f"{len(plain)} layers minimise the error on their Grams alone ({_some(plain)}): they are experts, or the "
            "loss does not depend on them"
        )
    back = [item for item in report.permutations if item.put_back]
    if back:
        names = _some(item.layer for item in back)
        notices.append(f"{len(back)} layers keep the order of their columns ({names}): {back[0].reason}")
    return notices


def _without_dense(report: PruneReport) -> list[str]:
    """Name the layers that have too few tiles of rows for one to be dense, though a share of them was to be."""
    from relaxprune.options import Target

    if "pattern" not in report.polytope:
        return []
    target = Target(pattern=report.polytope["pattern"])
    return [layer.name for layer in report.layers if target.lacks_dense((layer.rows, layer.cols))]


def left_out_notices(solver: str, left_out: list[str]) -> list[str]:
    """Return the notice that a solver did not run as its method was published, if a part was left out."""
    if not left_out:
        return []
    return [f"solver {solver!r} ran without {' and '.join(left_out)}, which the published method has"]


def status_notice(status: Status) -> str | None:
    """Return the sentence of a status that the user must see, or None for one that ends a solve as planned."""
    return f"{status.name}: {status.value}" if status.failed else None


def _some(names: Iterable[str]) -> str:
    """Name the first few."""
    listed = list(names)
    rest = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + rest
