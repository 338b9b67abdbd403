"""The sets of masks: each a polytope whose vertices are the feasible masks, with an exact and cheap linear oracle."""

from .base import Polytope as Polytope
from .description import polytope_from_dict as polytope_from_dict
from .face import Face as Face
from .hybrid import Hybrid as Hybrid
from .ksparse import KSparse as KSparse
from .nm import NM as NM
from .transposable import TransposableNM as TransposableNM

__all__ = ["NM", "Face", "Hybrid", "KSparse", "Polytope", "TransposableNM", "polytope_from_dict"]
