"""Ways to prune a model, as words of `relaxprune prune`, for tables that compare them (judge.py)."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass

from relaxprune.cli.prune.job import PruneJob
from relaxprune.cli.prune.reading import read_job

RECIPES = {
    "wanda": "--solver wanda",
    "fw": "--solver fw --effort fast",
    "sparsegpt": "--solver sparsegpt",
    "alps": "--solver alps",
    "reconstruct": "--solver reconstruct --effort fast",
}
# Samples of the model and shrinkage: the defaults of relaxprune's own solvers, for published methods on request.
ROBUST = {
    "wanda": "--self-share 0.3334",  # shrinkage changes nothing
    "sparsegpt": "--self-share 0.5 --shrinkage 0.1",
    "alps": "--self-share 0.5 --shrinkage 0.1",
}
# Without "robust": Grams of the calibration text as it is. A refinement reads samples of the model in either case.
AS_IS = "--self-share 0 --shrinkage 0"
# What goes with any of them; what layers minimise at its defaults, words after "=" say other numbers.
STAGES = {
    **{kind: f"--objective {kind}" for kind in ("rows", "fisher", "coupled")},
    "reselected": "--reselect 2",
    "refined": "--refine 3",
}
EXTRAS = ("robust", *STAGES)


@dataclass(frozen=True)
class Recipe:
    """A way to prune: its name and the words of `relaxprune prune` that ask for it."""

    name: str
    words: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Recipe:
        """Return the recipe that a command names.

        Raises:
            argparse.ArgumentTypeError: there is none of that name.
        """
        name, given, words = text.partition("=")
        if given:
            return cls(name, tuple(shlex.split(words)))
        base, *extras = name.split("+")
        for part, known in ((base, RECIPES), *((extra, EXTRAS) for extra in extras)):
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(known)}, and has no =WORDS")
        said = [ROBUST.get(base, "") if "robust" in extras else AS_IS]
        said += [words for extra, words in STAGES.items() if extra in extras]
        return cls(name, tuple(shlex.split(" ".join([RECIPES[base], *said]))))

    def job(self, target: str, arguments: argparse.Namespace) -> PruneJob:
        """Return what ``relaxprune prune`` would do; the recipe's own words win over those that all have in common."""
        common = {"calibration": arguments.calibration, "windows": arguments.windows, "length": arguments.length}
        words = [word for name, value in common.items() for word in (f"--{name}", str(value))]
        return read_job([arguments.model, *amount(target), *words, *self.words])


def amount(target: str) -> list[str]:
    """Return the words that ask for "50%" (or "50") or "2:4" (or "2of4")."""
    if ":" in target or "of" in target:
        return ["--pattern", target.replace("of", ":")]
    return ["--sparsity", f"{float(target.rstrip('%')) / 100:g}"]
