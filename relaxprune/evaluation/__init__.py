"""Evaluating a model: divergence from the dense one, perplexity, and accuracy on tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .divergence import DivergenceResult as DivergenceResult
    from .divergence import PairedDifference as PairedDifference
    from .tasks import TaskOptions as TaskOptions
    from .tasks import TaskResult as TaskResult
    from .tasks import evaluate_tasks as evaluate_tasks
    from .tasks import open_tasks as open_tasks

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "DivergenceResult": ".divergence",
        "PairedDifference": ".divergence",
        "TaskOptions": ".tasks",
        "TaskResult": ".tasks",
        "evaluate_tasks": ".tasks",
        "open_tasks": ".tasks",
    },
)
