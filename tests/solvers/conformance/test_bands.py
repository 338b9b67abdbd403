"""Every solver, on a problem whose every row is a band of its own; see ``band_checks``."""

from __future__ import annotations

from .band_checks import check_broken_band, check_polish, check_reports, check_stop, check_time
from .problems import Case, layer


def _case(seed: int) -> Case:
    """A few rows that enumeration can take as well."""
    return layer("mask", "row", seed, (4, 12)).case()


def test_the_callback_hears_of_every_band(name: str, seed: int) -> None:
    check_reports(_case(seed), name)


def test_the_callback_may_stop_a_solve(name: str, seed: int) -> None:
    check_stop(_case(seed), name)


def test_no_band_takes_the_time_of_the_others(name: str, seed: int) -> None:
    check_time(_case(seed), name)


def test_a_broken_band_leaves_the_others_alone(name: str, seed: int) -> None:
    check_broken_band(_case(seed), name)


def test_a_polish_is_one(name: str, seed: int) -> None:
    check_polish(_case(seed), name)
