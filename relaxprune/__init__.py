"""relaxprune: choose which weights of a layer to keep, with any solver and a proven bound on every answer.

Importing this package is cheap: every public name is loaded when it is first used, so neither transformers nor cvxpy
nor typer is imported until something needs it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a clone two of the folders of the package lie beside this one (pyproject.toml): from there it is importable too.
if not (_HERE := Path(__file__).parent).joinpath("problems").is_dir():
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from relaxprune.problems import NM as NM
    from relaxprune.problems import Gram as Gram
    from relaxprune.problems import KSparse as KSparse
    from relaxprune.problems import MaskProblem as MaskProblem
    from relaxprune.problems import Polytope as Polytope
    from relaxprune.problems import Problem as Problem
    from relaxprune.problems import QuadraticProblem as QuadraticProblem
    from relaxprune.problems import ReconstructionProblem as ReconstructionProblem
    from relaxprune.problems import RelaxPruneError as RelaxPruneError
    from relaxprune.problems import SolveError as SolveError
    from relaxprune.problems import TransposableNM as TransposableNM
    from relaxprune.solvers import Progress as Progress
    from relaxprune.solvers import Solver as Solver

    from .certificates import Certificate as Certificate
    from .certificates import certify as certify
    from .evaluation.perplexity import perplexity as perplexity
    from .models.loading import LoadOptions as LoadOptions
    from .models.loading import load_model as load_model
    from .options.solve_options import SolveOptions as SolveOptions
    from .pruning.pipeline import prune_model as prune_model
    from .pruning.planning import plan_model as plan_model
    from .pruning.prune_report import PruneReport as PruneReport
    from .report.writing import write_report as write_report
    from .runs.mask_file import read_masks as read_masks
    from .runs.mask_file import write_masks as write_masks
    from .solving.comparison import compare as compare
    from .solving.refitting import Refit as Refit
    from .solving.refitting import refit as refit
    from .solving.solution import Solution as Solution
    from .solving.solution import Status as Status
    from .solving.solving import available_solvers as available_solvers
    from .solving.solving import solve as solve
    from .text.windows import CalibrationOptions as CalibrationOptions
    from .text.windows import calibration_windows as calibration_windows
    from .text.windows import evaluation_windows as evaluation_windows

# The same names for who runs the package: a test holds the two lists to each other.
_HOME = {
    "Gram": "relaxprune.problems",
    "KSparse": "relaxprune.problems",
    "MaskProblem": "relaxprune.problems",
    "NM": "relaxprune.problems",
    "Polytope": "relaxprune.problems",
    "Problem": "relaxprune.problems",
    "QuadraticProblem": "relaxprune.problems",
    "ReconstructionProblem": "relaxprune.problems",
    "RelaxPruneError": "relaxprune.problems",
    "SolveError": "relaxprune.problems",
    "TransposableNM": "relaxprune.problems",
    "Progress": "relaxprune.solvers",
    "Solver": "relaxprune.solvers",
    "Certificate": "relaxprune.certificates",
    "certify": "relaxprune.certificates",
    "perplexity": "relaxprune.evaluation.perplexity",
    "LoadOptions": "relaxprune.models.loading",
    "load_model": "relaxprune.models.loading",
    "SolveOptions": "relaxprune.options.solve_options",
    "plan_model": "relaxprune.pruning.planning",
    "prune_model": "relaxprune.pruning.pipeline",
    "PruneReport": "relaxprune.pruning.prune_report",
    "compare": "relaxprune.solving.comparison",
    "write_report": "relaxprune.report.writing",
    "read_masks": "relaxprune.runs.mask_file",
    "write_masks": "relaxprune.runs.mask_file",
    "Refit": "relaxprune.solving.refitting",
    "refit": "relaxprune.solving.refitting",
    "Solution": "relaxprune.solving.solution",
    "Status": "relaxprune.solving.solution",
    "available_solvers": "relaxprune.solving.solving",
    "solve": "relaxprune.solving.solving",
    "CalibrationOptions": "relaxprune.text.windows",
    "calibration_windows": "relaxprune.text.windows",
    "evaluation_windows": "relaxprune.text.windows",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'relaxprune' has no attribute {name!r}") from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
