"""What is solved: objectives and the sets of masks.

>>> import torch
>>> from relaxprune.problems import KSparse, MaskProblem
>>> problem = MaskProblem(torch.ones(1, 3), torch.diag(torch.tensor([1.0, 4.0, 9.0])), KSparse(keep=2))
>>> problem.objective(torch.tensor([[False, True, True]]))
1.0
"""

from .errors import RelaxPruneError as RelaxPruneError
from .errors import SolveError as SolveError
from .gram import Gram as Gram
from .mask_problem import MaskProblem as MaskProblem
from .objective import Objective as Objective
from .polytopes import NM as NM
from .polytopes import Face as Face
from .polytopes import Hybrid as Hybrid
from .polytopes import KSparse as KSparse
from .polytopes import Polytope as Polytope
from .polytopes import TransposableNM as TransposableNM
from .polytopes import polytope_from_dict as polytope_from_dict
from .problem import BaseProblem as BaseProblem
from .problem import Problem as Problem
from .quadratic_problem import QuadraticProblem as QuadraticProblem
from .reconstruction_problem import ReconstructionProblem as ReconstructionProblem
from .working import Quadratic as Quadratic
from .working import Working as Working

__all__ = [
    "NM",
    "BaseProblem",
    "Face",
    "Gram",
    "Hybrid",
    "KSparse",
    "MaskProblem",
    "Objective",
    "Polytope",
    "Problem",
    "Quadratic",
    "QuadraticProblem",
    "ReconstructionProblem",
    "RelaxPruneError",
    "SolveError",
    "TransposableNM",
    "Working",
    "polytope_from_dict",
]
