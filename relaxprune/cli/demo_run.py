"""The runs behind ``relaxprune demo``: one model, loaded once, pruned again and again from the same dense weights.

The first run's model is kept, and shown as soon as it is there. The finished blocks of all runs are kept, so that each
can be resumed: those of the others in a folder beside the model's, which goes when the demo is done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relaxprune import RelaxPruneError, apply_masks, perplexity, read_masks, write_report
from relaxprune.evaluation.perplexity import PerplexityResult
from relaxprune.models import LoadedModel
from relaxprune.pruning import make_plan
from relaxprune.runs import RunFolder, evaluation_of, record_evaluation, weights_sha256
from relaxprune.runs.evaluation_file import DENSE
from relaxprune.runs.run_record import read_record
from relaxprune.support import machine_line, memory_line
from relaxprune.support.folder_lock import LOCK_NAME, refuse_held_folder
from relaxprune.text import CalibrationOptions, TokenWindows, evaluation_windows

from .demo_settings import DemoSettings, first_blocks, parts_of
from .demo_table import OURS, WANDA, DemoRow, comparison, demo_table, long_runs
from .endings import bad_input, door, tell
from .eval_texts import perplexity_line
from .loading import load_model, load_options
from .option_groups import ModelGroup
from .prune.folder import finish_folder, open_folder, refuse_small_disk
from .prune.job import PruneJob
from .prune.progress import duration
from .prune.run import calibration_tokens, prune_loaded

_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class _Shared:
    """What all runs of a demo share: the model, whose weights change, and the windows."""

    settings: DemoSettings
    loaded: LoadedModel
    windows: TokenWindows
    held_out: TokenWindows
    dense_sha256: str

    def measure(self) -> PerplexityResult:
        """Measure and print the perplexity of the model as it is now."""
        result = perplexity(self.loaded.model, self.held_out.tokens)
        print(perplexity_line(result.perplexity, result.windows, result.length, self.held_out.source), flush=True)
        return result

    def keep(self, results: Mapping[str, PerplexityResult]) -> None:
        """Keep perplexities, by method, in the folder of the model that is kept, and write its page."""
        out, source = self.settings.out, self.settings.model
        names = {DENSE: source, OURS: str(out), WANDA: f"{source}, {WANDA}"}
        for method, result in results.items():
            found = evaluation_of(names[method], out, result, self.held_out, self.dense_sha256)
            record_evaluation(out, replace(found, method="wanda") if method == WANDA else found)
        try:
            print(f"its page, with pictures: {write_report([out])}", flush=True)
        except RelaxPruneError as error:
            print(f"its page is not written: {error}", flush=True)


def run_demo(settings: DemoSettings) -> int:
    """Run the demo and print its table.

    Returns:
        0; or 3 if relaxprune's masks were not better than Wanda's, or a run has notices.
    """
    jobs = settings.jobs()
    _refuse_others(settings, jobs)
    with _under_way(settings):
        for job in jobs:
            RunFolder.refuse_occupied(job.folder, settings.resume)
        code = _compare(settings, jobs)
    for name in _own(settings, jobs):
        shutil.rmtree(settings.parts / name, ignore_errors=True)
    (settings.parts / _UNFINISHED).unlink(missing_ok=True)
    with suppress(OSError):
        settings.parts.rmdir()
    return code


def _own(settings: DemoSettings, jobs: list[PruneJob]) -> set[str]:
    """Return the names of the runs in the folder of the parts."""
    return {job.folder.name for job in jobs if job.folder.parent == settings.parts}


def _refuse_others(settings: DemoSettings, jobs: list[PruneJob]) -> None:
    """Raise RelaxPruneError if the folder of the parts, which goes at the end, has anything of somebody else in it."""
    expected = {*_own(settings, jobs), _UNFINISHED, LOCK_NAME}
    found = {path.name for path in settings.parts.iterdir()} if settings.parts.is_dir() else set()
    if found - expected:
        raise bad_input(
            f"--out {str(settings.out)!r} needs the folder {str(settings.parts)!r} beside it for a while, which holds "
            f"{min(found - expected)!r}: name another --out"
        )


@contextmanager
def _under_way(settings: DemoSettings) -> Iterator[None]:
    """Hold the folder of the parts, which stays for ``--resume`` to find if the demo ends with something to go on from.

    Raises:
        RelaxPruneError: a demo was interrupted there and is not to be resumed, or another process is at work there.
    """
    refuse_held_folder(settings.out)
    stopped = settings.parts.is_dir()
    with RunFolder.hold(settings.parts):
        if stopped and not settings.resume and _begun(settings.out):
            raise bad_input(
                f"the demo in {str(settings.out)!r} was interrupted: add --resume to continue it, or name another --out"
            )
        try:
            yield
        except BaseException:
            if _begun(settings.out):
                (settings.parts / _UNFINISHED).touch()
            raise


def _compare(settings: DemoSettings, jobs: list[PruneJob]) -> int:
    """Carry out the runs and print their table; returns the exit code."""
    started, extent = time.perf_counter(), settings.extent
    evaluation = CalibrationOptions(windows=extent.held_out, length=extent.length)
    print(f"machine: {machine_line()}", flush=True)
    with door():
        loaded = load_model(settings.model, load_options(ModelGroup()))
    windows = calibration_tokens(jobs[0], loaded)  # relaxprune's, for Wanda too: errors are on the same Grams
    held_out = evaluation_windows("builtin", loaded.tokenizer, evaluation)
    print(f"calibration: {len(windows)} windows of {extent.length} tokens, {windows.source}", flush=True)
    shared = _Shared(settings, loaded, windows, held_out, weights_sha256(loaded.model))
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    measured = {DENSE: shared.measure()}
    rows, notices = [DemoRow(DENSE, "-", measured[DENSE].perplexity, None)], list[str]()
    for number, whole in enumerate(jobs):
        loaded.model.load_state_dict(dense)
        job = first_blocks(whole, loaded.model, extent.blocks)
        if number == 0 and job is not whole:
            print(f"pruned are the first {extent.blocks} blocks; --full prunes all", flush=True)
        with RunFolder.hold(job.folder):
            facts = _run(job, shared, notices)
        method, result = _method(job), shared.measure()
        row = DemoRow(method, _amount(job), result.perplexity, facts)
        rows.insert(len(rows) - (method == WANDA), row)  # above relaxprune's, which was run before
        if job.request.target == jobs[0].request.target:
            measured[method] = result
            shared.keep(measured)
        if number == 0:
            print(demo_table(rows, extent))
            print(f"\nfirst result after {_total(started)}; Wanda's own run follows, for its perplexity", flush=True)
    print(demo_table(rows, extent))
    print(long_runs(settings), end="")
    print(f"effort: {extent.effort}; total {_total(started)}; {memory_line()}")
    return tell([*notices, *comparison(rows)])


def _run(job: PruneJob, shared: _Shared, notices: list[str]) -> Mapping[str, Any]:
    """Prune once, or take what an earlier demo has pruned; returns the report of ``relaxprune.json``."""
    loaded, windows = shared.loaded, shared.windows
    plan = make_plan(loaded.model, job.request, job.tokens)
    refuse_small_disk(job, loaded, plan)
    folder = open_folder(job, loaded, windows)
    if folder.finished:
        folder.verify_files()
        apply_masks(loaded.model, read_masks(folder.path))
        notices += folder.notices
        facts: Mapping[str, Any] = read_record(folder.path)["report"]
        return facts
    report = prune_loaded(job, windows, plan, folder, title=f"{_method(job)} {_amount(job)}")
    if job.folder == shared.settings.out:
        notices += finish_folder(job, folder, loaded, report)
    return report.to_dict()


def left_behind(out: Path) -> str:
    """Say what a demo that could not go on leaves."""
    folders = _folders(out)
    if not _begun(out):
        return "nothing is written"
    blocks = sum(len(folder.solved_blocks) for folder in folders)
    finished = f"the finished 50 % model is in {out}, and " if folders[0].finished else ""
    return f"{finished}{blocks} finished blocks are kept: --resume with --out {out} continues from them"


def _folders(out: Path) -> list[RunFolder]:
    """Return the folders of a demo's runs, that of the model first."""
    parts = parts_of(out)
    others = (path for path in parts.iterdir() if path.is_dir()) if parts.is_dir() else ()
    return [RunFolder(path, {}) for path in (out, *others)]


def _begun(out: Path) -> bool:
    return any(folder.begun for folder in _folders(out))


def _method(job: PruneJob) -> str:
    return WANDA if job.request.solver.name == "wanda" else OURS


def _amount(job: PruneJob) -> str:
    target = job.request.target
    return target.pattern or f"{target.sparsity:.0%}"


def _total(started: float) -> str:
    return duration(time.perf_counter() - started)
