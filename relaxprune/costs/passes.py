"""How often a run puts its calibration text through the model, by what it is asked to do."""

from __future__ import annotations

from relaxprune.options.prune_options import PruneOptions

PROOF = 5  # passes of the first two batches together, to prove that blocks may be replayed and outputs be checked
_TUNING = 2  # the error before, of the dense and of the pruned block
_EPOCH = 5  # three quarters of the batches forward twice and backward, then the error again
_REFINING = 2  # of the dense model, of half of the windows before and after
_GRADIENTS = 7  # the model forward, again for its gradients, and back; every block forward, back, to sums, and on
_REFINED = 4  # three quarters of the windows forward twice and backward, then the others forward
# Three quarters of the windows forward, and for two gradients forward twice and backward; the others forward for each
# trial: three sizes of steps.
_RESELECTED = 7.5


def gram_sums(options: PruneOptions) -> int:
    """Return how many products every Gram takes: with ``correct`` those of the inputs, the dense ones and of both."""
    return 3 if options.correct else 1


def forward_passes(options: PruneOptions, more: float = 0.0) -> dict[str, float]:
    """Return how often the text goes through all blocks, by stage; backward passes count as two.

    With ``correct`` the dense model is put through beside the pruned one.

    Args:
        options: what is asked for.
        more: text that only ``refine`` and ``reselect`` read, as a multiple of the calibration text.
    """
    streams = 2 if options.correct else 1
    capped = options.statistics.token_cap is not None
    passes: dict[str, float] = {"capture": streams, "statistics": streams * (1 + capped), "propagate": streams}
    if options.objective.active:
        passes["gradients"] = _GRADIENTS
    if options.tune:
        passes["tune"] = _TUNING + options.tune * _EPOCH
    if options.reselect:
        passes["reselect"] = (1 + more) * (_REFINING + options.reselect * _RESELECTED)
    if options.refine:
        passes["refine"] = (1 + more) * (_REFINING + options.refine * _REFINED)
    return passes
