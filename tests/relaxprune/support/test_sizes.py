"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from relaxprune.problems import RelaxPruneError
from relaxprune.support.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24GiB", 24 * 2**30),
        ("1.5g", 3 * 2**29),
        (" 500 MB ", 500_000_000),
        ("2kib", 2048),
        ("7", 7),
        ("3TiB", 3 * 2**40),
    ],
)
def test_amounts(text: str, expected: int) -> None:
    assert parse_bytes("memory", text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "0.1B", "1PiB", "1 GiB more", "1e9", "nan"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(RelaxPruneError, match="memory must be a size"):
        parse_bytes("memory", text)
