"""How problems are solved: one backend per file, one protocol, one loop."""

from .base import Answer as Answer
from .base import Counts as Counts
from .base import Progress as Progress
from .base import Run as Run
from .base import Solver as Solver
from .base import Status as Status
from .loop import IterativeSolver as IterativeSolver
from .loop import Plan as Plan
from .loop import State as State
from .registry import make_solver as make_solver
from .registry import solver_class as solver_class
from .registry import solver_distribution as solver_distribution
from .registry import solver_names as solver_names

__all__ = [
    "Answer",
    "Counts",
    "IterativeSolver",
    "Plan",
    "Progress",
    "Run",
    "Solver",
    "State",
    "Status",
    "make_solver",
    "solver_class",
    "solver_distribution",
    "solver_names",
]
