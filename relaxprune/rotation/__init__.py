"""Rotations of a dense model that leave what it computes as it is, so that masks lose less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .learners.base import Learner as Learner
    from .learners.registry import make_learner as make_learner
    from .rotating import RotateStep as RotateStep
    from .rotating import rotate_model as rotate_model
    from .rotation import RotateOptions as RotateOptions
    from .rotation import Rotation as Rotation

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Learner": ".learners.base",
        "RotateOptions": ".rotation",
        "RotateStep": ".rotating",
        "Rotation": ".rotation",
        "make_learner": ".learners.registry",
        "rotate_model": ".rotating",
    },
)
