"""relaxprune: choose which weights of a layer to keep, with any solver and a proven bound on every answer.

Importing this package is cheap: every public name is loaded when it is first used, so transformers, cvxpy and
typer are not imported until something needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .support.lazy import lazy

__version__ = "0.1.0"

# In a clone two of the folders of the package lie beside this one (pyproject.toml): from there it is importable too.
if not (_HERE := Path(__file__).parent).joinpath("problems").is_dir():
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from relaxprune.problems import NM as NM
    from relaxprune.problems import Gram as Gram
    from relaxprune.problems import Hybrid as Hybrid
    from relaxprune.problems import KSparse as KSparse
    from relaxprune.problems import MaskProblem as MaskProblem
    from relaxprune.problems import Objective as Objective
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
    from .certificates import CertificateError as CertificateError
    from .certificates import MaskCertificate as MaskCertificate
    from .certificates import WeightCertificate as WeightCertificate
    from .certificates import certify as certify
    from .certificates import certify_weights as certify_weights
    from .certificates import load_certificate as load_certificate
    from .conversion import convert_run as convert_run
    from .conversion import load_converted as load_converted
    from .evaluation import DivergenceResult as DivergenceResult
    from .evaluation import PairedDifference as PairedDifference
    from .evaluation.divergence import divergence as divergence
    from .evaluation.perplexity import perplexity as perplexity
    from .inputs import GramAccumulator as GramAccumulator
    from .layer_files import FileOptions as FileOptions
    from .layer_files import FileOutcome as FileOutcome
    from .layer_files import FilesSummary as FilesSummary
    from .layer_files import solve_files as solve_files
    from .models import LoadOptions as LoadOptions
    from .models import apply_masks as apply_masks
    from .models import load_model as load_model
    from .models import load_rotated as load_rotated
    from .options import Allocation as Allocation
    from .options import ObjectiveOptions as ObjectiveOptions
    from .options import PruneOptions as PruneOptions
    from .options import SolveOptions as SolveOptions
    from .options import StatisticsOptions as StatisticsOptions
    from .options import recipe as recipe
    from .pruning import LayerReport as LayerReport
    from .pruning import Plan as Plan
    from .pruning import PruneReport as PruneReport
    from .pruning import plan_model as plan_model
    from .pruning import prune_model as prune_model
    from .ranks import RankError as RankError
    from .ranks import Ranks as Ranks
    from .ranks import joined as joined
    from .report.writing import write_report as write_report
    from .residency import Residency as Residency
    from .rotation import RotateOptions as RotateOptions
    from .rotation import Rotation as Rotation
    from .rotation import rotate_model as rotate_model
    from .runs import read_masks as read_masks
    from .runs import write_masks as write_masks
    from .solving import ComparisonOptions as ComparisonOptions
    from .solving import Refit as Refit
    from .solving import Solution as Solution
    from .solving import Status as Status
    from .solving import available_solvers as available_solvers
    from .solving import compare as compare
    from .solving import refit as refit
    from .solving import solve as solve
    from .text import CalibrationOptions as CalibrationOptions
    from .text import calibration_windows as calibration_windows
    from .text import evaluation_windows as evaluation_windows
    from .timing import SpeedOptions as SpeedOptions
    from .timing import measure_speed as measure_speed

__getattr__, __dir__, _NAMES = lazy(
    __name__,
    {
        "Allocation": ".options",
        "CalibrationOptions": ".text",
        "Certificate": ".certificates",
        "CertificateError": ".certificates",
        "ComparisonOptions": ".solving",
        "DivergenceResult": ".evaluation",
        "FileOptions": ".layer_files",
        "FileOutcome": ".layer_files",
        "FilesSummary": ".layer_files",
        "Gram": ".problems",
        "GramAccumulator": ".inputs",
        "Hybrid": ".problems",
        "KSparse": ".problems",
        "LayerReport": ".pruning",
        "LoadOptions": ".models",
        "MaskCertificate": ".certificates",
        "MaskProblem": ".problems",
        "Objective": ".problems",
        "ObjectiveOptions": ".options",
        "NM": ".problems",
        "PairedDifference": ".evaluation",
        "Plan": ".pruning",
        "Polytope": ".problems",
        "Problem": ".problems",
        "Progress": ".solvers",
        "PruneOptions": ".options",
        "PruneReport": ".pruning",
        "QuadraticProblem": ".problems",
        "RankError": ".ranks",
        "Ranks": ".ranks",
        "ReconstructionProblem": ".problems",
        "Refit": ".solving",
        "RelaxPruneError": ".problems",
        "Residency": ".residency",
        "RotateOptions": ".rotation",
        "Rotation": ".rotation",
        "Solution": ".solving",
        "SolveError": ".problems",
        "SolveOptions": ".options",
        "Solver": ".solvers",
        "SpeedOptions": ".timing",
        "StatisticsOptions": ".options",
        "Status": ".solving",
        "TransposableNM": ".problems",
        "WeightCertificate": ".certificates",
        "apply_masks": ".models",
        "available_solvers": ".solving",
        "calibration_windows": ".text",
        "certify": ".certificates",
        "certify_weights": ".certificates",
        "compare": ".solving",
        "convert_run": ".conversion",
        "divergence": ".evaluation.divergence",
        "evaluation_windows": ".text",
        "joined": ".ranks",
        "load_certificate": ".certificates",
        "load_converted": ".conversion",
        "load_model": ".models",
        "load_rotated": ".models",
        "measure_speed": ".timing",
        "perplexity": ".evaluation.perplexity",
        "plan_model": ".pruning",
        "prune_model": ".pruning",
        "read_masks": ".runs",
        "recipe": ".options",
        "refit": ".solving",
        "rotate_model": ".rotation",
        "solve": ".solving",
        "solve_files": ".layer_files",
        "write_masks": ".runs",
        "write_report": ".report.writing",
    },
)
__all__ = ["__version__", *_NAMES]
