"""Models with Python code of their own: no form is made of them, since rebuilding one would run that code."""

from __future__ import annotations

from relaxprune.models.side_files import names_own_code
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.runs.finished_run import FinishedRun


def refuse_own_code(run: FinishedRun, command: str) -> None:
    """Refuse a run whose model needs code of its own, before anything is loaded.

    A model that brings such code, and that transformers knows as well, passes if the run was made without the code.

    Raises:
        RelaxPruneError: it needs it.
    """
    if not names_own_code(run.path):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    trusted = run.record["fingerprint"]["model"].get("trust_remote_code")
    if trusted or run.config.get("model_type") not in CONFIG_MAPPING:
        raise RelaxPruneError(f"{command} does not take models with their own code, got {str(run.path)!r}")
