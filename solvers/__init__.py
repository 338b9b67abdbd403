"""How problems are solved: one solver per file, one protocol, one driver over bands of rows, one loop.

``base`` is the protocol; ``driver`` runs every solver over the bands of rows that fit in memory; ``loop`` iterates on a
``state``; ``gap`` decides when it may stop; ``registry`` knows the names. The solvers are in the families
``frank_wolfe``, ``projection``, ``exchange``, ``weights`` and ``reference``, whose ``engine`` folders hold their parts.
"""

from .base import Answer as Answer
from .base import Counts as Counts
from .base import Progress as Progress
from .base import Published as Published
from .base import Run as Run
from .base import Solver as Solver
from .base import Status as Status
from .driver import Band as Band
from .driver import Driver as Driver
from .loop import Budget as Budget
from .loop import IterativeSolver as IterativeSolver
from .registry import make_solver as make_solver
from .registry import polish_names as polish_names
from .registry import polishes as polishes
from .registry import solver_class as solver_class
from .registry import solver_distribution as solver_distribution
from .registry import solver_names as solver_names
from .state import FirstOrderState as FirstOrderState
from .state import State as State

__all__ = [
    "Answer",
    "Band",
    "Budget",
    "Counts",
    "Driver",
    "FirstOrderState",
    "IterativeSolver",
    "Progress",
    "Published",
    "Run",
    "Solver",
    "State",
    "Status",
    "make_solver",
    "polish_names",
    "polishes",
    "solver_class",
    "solver_distribution",
    "solver_names",
]
