"""``relaxprune eval``: a model on text that calibration never sees, alone or against the dense one, or on tasks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input, command_line, door
from .option_groups import ModelGroup, TextGroup, with_groups

if TYPE_CHECKING:
    from relaxprune.evaluation import TaskResult


@dataclass(frozen=True)
class TaskGroup:
    """Tasks of lm-eval instead of a perplexity; None if not given."""

    tasks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Tasks of lm-eval with commas between, such as boolq,arc_easy.")
    ] = None
    task_path: Annotated[Path | None, typer.Option(help="Folder of your own task files; needs no network.")] = None
    limit: Annotated[int | None, typer.Option(help="Only the first examples of every task, to try it out.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Requests of tasks per forward pass; 1 by default.")] = None
    out: Annotated[Path | None, typer.Option(help="File for the tasks' scores and versions, as JSON.")] = None

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]


@with_groups
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    loading: ModelGroup,
    text: TextGroup,
    tasks: TaskGroup,
) -> None:
    """Print a model's perplexity and divergence on held-out texts, or with --tasks its accuracies."""
    if tasks.tasks is None:
        from .eval_texts import evaluate_texts

        _refuse(tasks, "there is no --tasks")
        evaluate_texts(model, loading, text)
    else:
        _refuse(text, "text is not read with --tasks")
        _tasks(model, loading, tasks)


def _refuse(group: TextGroup | TaskGroup, why: str) -> None:
    """Refuse options that would have no effect."""
    given = [f"--{name.replace('_', '-')}" for name, value in vars(group).items() if value not in (None, [])]
    if given:
        raise bad_input(f"{given[0]} is given, but {why}")


def _tasks(model: str, loading: ModelGroup, group: TaskGroup) -> None:
    """Print the accuracy on each task, and write them if asked to."""
    from relaxprune import __version__
    from relaxprune.evaluation import TaskOptions, evaluate_tasks, open_tasks
    from relaxprune.models.token_limits import check_tokenizer
    from relaxprune.support import refuse_output_file, write_json

    from .loading import load_model, load_options

    # It warns about every model that is handed over in memory.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    if group.out is not None:
        refuse_output_file(group.out)
    options = TaskOptions(group.task_path, group.limit, 1 if group.batch_size is None else group.batch_size)
    load = load_options(loading)
    found = open_tasks(group.names, options)  # an unknown name or missing data must not wait for the model
    with door():
        loaded = load_model(model, load)
    check_tokenizer(loaded.model, loaded.tokenizer)
    result = evaluate_tasks(loaded.model, loaded.tokenizer, found, options)
    print(task_table(result))
    if group.out is not None:
        head = {"relaxprune": __version__, "command": command_line(), "model": model}
        with door():
            write_json(group.out, {"schema_version": 1, **head, "commit": loaded.commit, **result.to_dict()})
        print(f"written to {group.out}")


def task_table(result: TaskResult) -> str:
    """Return a table of accuracies, with the versions without which they mean little."""
    lines = [f"{'task':<20} {'acc':>7} {'stderr':>7}  {'examples':<16} {'version':<8} shots"]
    for score in result.scores:
        asked = f"{score.examples} of {score.of}"
        error = "-" if score.stderr is None else f"{score.stderr:.4f}"
        lines.append(f"{score.task:<20} {score.acc:7.4f} {error:>7}  {asked:<16} {score.version!s:<8} {score.shots}")
    bos = "with" if result.bos else "without"
    lines.append(
        f"mean acc {result.mean:.4f} of {len(result.scores)} tasks (acc, not acc_norm; lm-eval {result.lm_eval}, "
        f"transformers {result.transformers}, {bos} a first token before each text)"
    )
    return "\n".join(lines)
