"""Accuracy on lm-eval tasks: zero-shot, plain ``acc``, with the versions that a comparison needs.

The pruning papers report ``acc`` and not ``acc_norm``, and scores move with the version of the harness and of each
task, so both are part of every result. Needs the extra ``eval``.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from relaxprune.models.forward import evaluating
from relaxprune.problems.checks import whole_number
from relaxprune.problems.errors import RelaxPruneError, did_you_mean
from relaxprune.support.sentences import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are run.

    Attributes:
        path: a folder of your own task files, which win over lm-eval's of the same name; None for lm-eval's only.
        limit: use only this many examples of every task, to try things out; None for all of them.
        batch_size: requests per forward pass.
    """

    path: Path | None = None
    limit: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Raise RelaxPruneError for a missing folder, or for numbers that are not positive."""
        if self.path is not None and not self.path.is_dir():
            raise RelaxPruneError(f"task path must be a folder with task files, got {str(self.path)!r}")
        whole_number("batch size", self.batch_size, 1)
        if self.limit is not None:
            whole_number("limit", self.limit, 1)


@dataclass(frozen=True)
class TaskScore:
    """The score of one task.

    Attributes:
        task: its name.
        acc: the share of examples whose right answer is the likeliest; not normalised by length.
        stderr: its standard error; None for a single example.
        examples: how many were evaluated.
        of: how many the task has.
        version: the task's, as lm-eval states it; None if it states none.
        shots: solved examples before each question.
    """

    task: str
    acc: float
    stderr: float | None
    examples: int
    of: int
    version: str | None
    shots: int


@dataclass(frozen=True)
class TaskResult:
    """Scores with everything needed to compare them.

    Attributes:
        scores: one for every task, including those of groups and tags.
        lm_eval: version of the harness.
        transformers: version of transformers.
        bos: whether the harness puts the tokenizer's BOS token before every text.
        limit: as in the options.
    """

    scores: tuple[TaskScore, ...]
    lm_eval: str
    transformers: str
    bos: bool
    limit: int | None

    @property
    def mean(self) -> float:
        """The plain mean of the accuracies."""
        return sum(score.acc for score in self.scores) / len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the mean as a JSON-ready dictionary."""
        return {**asdict(self), "scores": [asdict(score) for score in self.scores], "metric": "acc", "mean": self.mean}


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] | Mapping[str, Any],
    options: TaskOptions | None = None,
) -> TaskResult:
    """Evaluate a causal language model on lm-eval tasks, zero-shot unless a task says otherwise.

    Args:
        model: runs on its own device, in its own dtype; training flags and random state are left unchanged.
        tokenizer: the model's own.
        tasks: names of tasks, groups or tags, such as ``["boolq", "arc_easy"]``, or what ``open_tasks`` returned.
        options: see ``TaskOptions``.

    Raises:
        RelaxPruneError: lm-eval is not installed, a name is unknown, a task's data cannot be loaded, or it has no
            plain ``acc``.
    """
    options = options or TaskOptions()
    with _same_random_state():  # importing lm-eval and loading tasks also draw random numbers
        found = tasks if isinstance(tasks, Mapping) else open_tasks(tasks, options)
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        with evaluating(model):
            harness = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=options.batch_size)
            results: Any = simple_evaluate(
                model=harness,
                tasks=list(found.values()),
                limit=options.limit,
                log_samples=False,
                bootstrap_iters=0,
                task_manager=TaskManager(include_defaults=False),  # otherwise it reads 14,000 files that are not needed
            )
    return TaskResult(
        tuple(_score(name, results) for name in found),
        results["lm_eval_version"],
        results["transformers_version"],
        bool(harness.add_bos_token),
        options.limit,
    )


def _score(name: str, results: Any) -> TaskScore:
    """Return one task's score from lm-eval's results."""
    acc, counts, version = float(results["results"][name]["acc,none"]), results["n-samples"][name], results["versions"]
    examples = int(counts["effective"])
    return TaskScore(
        task=name,
        acc=acc,
        # That of a mean of zeros and ones; lm-eval gives its own only with a bootstrap of other metrics: minutes.
        stderr=None if examples < 2 else math.sqrt(acc * (1 - acc) / (examples - 1)),
        examples=examples,
        of=int(counts["original"]),
        version=None if version.get(name) is None else str(version[name]),
        shots=int(results["n-shot"][name]),
    )


def open_tasks(tasks: Sequence[str], options: TaskOptions) -> dict[str, Any]:
    """Load tasks with their data; needs no model.

    Returns:
        Task name -> lm-eval's task, with groups and tags expanded.

    Raises:
        RelaxPruneError: as in ``evaluate_tasks``.
    """
    if find_spec("lm_eval") is None:
        raise RelaxPruneError("tasks need the package lm-eval: run `pip install 'relaxprune[eval]'`")
    if isinstance(tasks, str) or not tasks:
        raise RelaxPruneError(f'tasks must be a list of at least one name, such as ["boolq"], got {tasks!r}')
    manager = _manager(tasks, options.path)
    found: dict[str, Any] = {}
    for name in tasks:
        if name not in manager.all_tasks:
            raise RelaxPruneError(
                f"task {name!r} is unknown to lm-eval{'' if options.path is None else f' and to {options.path}'}"
                f"{did_you_mean(name, manager.all_tasks)}"
            )
        try:
            found |= manager.load([name])["tasks"]
        except Exception as error:  # whatever a task's own code, its data set's loader or the network raise
            raise RelaxPruneError(f"the data of task {name!r} could not be loaded: {first_line(error)}") from error
    for name, task in found.items():
        if "acc" not in task.aggregation():
            raise RelaxPruneError(
                f"task {name!r} has no plain acc, only {', '.join(task.aggregation())}: name tasks that have one"
            )
    return found


def _manager(tasks: Sequence[str], path: Path | None) -> Any:
    """Return lm-eval's task manager, for the folder alone if it has all the tasks: listing the others takes seconds."""
    from lm_eval.tasks import TaskManager

    if path is not None:
        own = TaskManager(include_path=path, include_defaults=False)
        if all(name in own.all_tasks for name in tasks):
            return own
    return TaskManager(include_path=path)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Restore the random states that lm-eval seeds."""
    import numpy

    state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(state)
        numpy.random.set_state(numpy_state)
