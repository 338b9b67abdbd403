"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from relaxprune.problems.errors import RelaxPruneError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("KMGT", 1)
    for end, base in (("iB", 1024), ("B", 1000), ("", 1024))
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_bytes(name: str, text: str) -> int:
    """Return the bytes that a text such as ``"24GiB"`` gives.

    Units are B, KiB, MiB, GiB and TiB; kB, MB, GB and TB count by thousands, and K, M, G and T alone by 1024.

    Args:
        name: of the argument.
        text: a positive number and a unit.

    Raises:
        RelaxPruneError: it is none.
    """
    found = _AMOUNT.fullmatch(text.strip())
    unit = None if found is None else _UNITS.get(found[2].upper().replace("IB", "iB"))
    if found is None or unit is None or not (size := int(float(found[1]) * unit)):
        raise RelaxPruneError(f"{name} must be a size such as 24GiB or 500MiB, got {text!r}")
    return size
