"""``relaxprune eval``: perplexity of a model on text that calibration never sees, or its accuracy on tasks."""

from __future__ import annotations

import logging
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input, door, interruptible
from .option_groups import ModelGroup, TaskGroup, TextGroup, with_groups

if TYPE_CHECKING:
    from relaxprune.evaluation.tasks import TaskResult


@with_groups
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or smollm2-135m.")],
    loading: ModelGroup,
    text: TextGroup,
    tasks: TaskGroup,
) -> None:
    """Print a model's perplexity on held-out text with window length and count, or with --tasks its accuracies."""
    if tasks.tasks is None:
        _refuse(tasks, "there is no --tasks")
        _perplexity(model, loading, text)
    else:
        _refuse(text, "perplexity is not measured with --tasks")
        _tasks(model, loading, tasks)


def _refuse(group: TextGroup | TaskGroup, why: str) -> None:
    """Refuse options that would have no effect."""
    given = [f"--{name.replace('_', '-')}" for name, value in vars(group).items() if value is not None]
    if given:
        raise bad_input(f"{given[0]} is given, but {why}")


def _perplexity(model: str, loading: ModelGroup, text: TextGroup) -> None:
    """Print the perplexity on held-out windows."""
    from relaxprune.evaluation.perplexity import perplexity
    from relaxprune.runs.evaluation_file import evaluation_of, record_evaluation, run_folder_of
    from relaxprune.runs.fingerprint import weights_sha256
    from relaxprune.text.windows import CalibrationOptions, evaluation_windows, open_source

    from .loading import load_model, load_options

    source = text.text or "builtin"
    folder = run_folder_of(model, text.record)
    with interruptible():
        options = load_options(loading)
        wanted = CalibrationOptions(
            windows=20 if text.windows is None else text.windows, length=512 if text.length is None else text.length
        )
        with door():
            open_source(source, "evaluation")
            loaded = load_model(model, options)
            tokens = evaluation_windows(source, loaded.tokenizer, wanted)
        result = perplexity(loaded.model, tokens.tokens)
        # Said before it is kept: a folder that cannot be written must not cost the answer.
        print(perplexity_line(result.perplexity, result.windows, result.length, tokens.source), flush=True)
        if folder is not None:
            kept = evaluation_of(model, folder, result, tokens, weights_sha256(loaded.model))
            with door():
                record_evaluation(folder, kept)
            print(f"kept in {folder}, method {kept.method}")


def _tasks(model: str, loading: ModelGroup, group: TaskGroup) -> None:
    """Print the accuracy on each task, and write them where asked to."""
    from relaxprune import __version__
    from relaxprune.evaluation.tasks import TaskOptions, evaluate_tasks, open_tasks
    from relaxprune.support.durable import write_json
    from relaxprune.support.outputs import refuse_output_file

    from .loading import load_model, load_options

    # It warns about every model that is handed over in memory.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    if group.out is not None:
        refuse_output_file(group.out)
    with interruptible():
        options = TaskOptions(group.task_path, group.limit, 1 if group.batch_size is None else group.batch_size)
        load = load_options(loading)
        found = open_tasks(group.names, options)  # an unknown name or missing data must not wait for the model
        with door():
            loaded = load_model(model, load)
        result = evaluate_tasks(loaded.model, loaded.tokenizer, found, options)
    print(task_table(result))
    if group.out is not None:
        head = {"relaxprune": __version__, "command": shlex.join(["relaxprune", *sys.argv[1:]]), "model": model}
        with door():
            write_json(group.out, {"schema_version": 1, **head, "commit": loaded.commit, **result.to_dict()})
        print(f"written to {group.out}")


def task_table(result: TaskResult) -> str:
    """Say every accuracy with the versions without which it means little."""
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


def perplexity_line(value: float, windows: int, length: int, source: str) -> str:
    """Say a perplexity with what it was measured on; a perplexity without these means nothing."""
    return f"perplexity {value:.4f} ({windows} windows of {length} tokens, {source}, held out)"
