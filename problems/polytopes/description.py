"""Building a set of masks from its description in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import RelaxPruneError
from .base import FIXED_COUNTS, KINDS, Polytope


def polytope_from_dict(values: Mapping[str, Any]) -> Polytope:
    """Build the set that ``Polytope.to_dict`` described.

    Raises:
        RelaxPruneError: an unknown set, wrong options, or a ``Face``, whose description lacks its entries.
    """
    if not isinstance(values, Mapping):
        raise RelaxPruneError(f"polytope must be described by an object, got a {type(values).__name__}")
    options = dict(values)
    fixed = [name for name in FIXED_COUNTS if name in options]
    if fixed:
        raise RelaxPruneError(
            f"polytope gives {' and '.join(fixed)} as counts only, so the fixed entries are unknown; "
            "build the set without them, and give the masks to Face"
        )
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise RelaxPruneError(f"polytope kind is {kind!r}; known kinds are {', '.join(sorted(KINDS))}")
    build: Callable[..., Polytope] = KINDS[kind]
    try:
        return build(**options)
    except TypeError as error:
        raise RelaxPruneError(f"polytope of kind {kind!r} cannot be built from {options}: {error}") from error
