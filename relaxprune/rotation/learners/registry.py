"""Names of learners."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from relaxprune.problems.errors import RelaxPruneError, did_you_mean

from .base import Learner

_BUILT_IN = {
    "entropy": "relaxprune.rotation.learners.entropy:Entropy",
    "error": "relaxprune.rotation.learners.error:Error",
    "pca": "relaxprune.rotation.learners.pca:PrincipalAxes",
}
DEFAULT = "error"


def learner_names() -> list[str]:
    """Return the names of all learners, without importing any."""
    return list(_BUILT_IN)


def make_learner(learner: str | Learner, /, **options: Any) -> Learner:
    """Return a learner from a name and options, or the instance given.

    Raises:
        RelaxPruneError: an unknown name or option, or options with an instance.
    """
    if isinstance(learner, Learner):
        if options:
            raise RelaxPruneError(f"learner is an instance, which carries its own options; got {', '.join(options)}")
        return learner
    if learner not in _BUILT_IN:
        hint = did_you_mean(str(learner), _BUILT_IN)
        raise RelaxPruneError(f"learner must be one of {', '.join(_BUILT_IN)}, got {learner!r}{hint}")
    module, _, attribute = _BUILT_IN[learner].partition(":")
    found: type[Learner] = getattr(import_module(module), attribute)
    known = [item.name for item in fields(found)]
    for option in options:
        if option not in known:
            raise RelaxPruneError(
                f"learner {learner!r} has no option {option!r}{did_you_mean(option, known)} "
                f"(its options are {', '.join(known) or 'none'})"
            )
    return found(**options)
