"""Many layer files: every answer is that of the layer by itself, failures cost nothing else, nothing is repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relaxprune import (
    FileOptions,
    FileOutcome,
    KSparse,
    MaskProblem,
    RelaxPruneError,
    load_certificate,
    read_masks,
    solve,
    solve_files,
)
from relaxprune.layer_files import solving_files
from relaxprune.layer_files.memory import PROCESS_BYTES, solving_bytes
from relaxprune.runs.mask_file import read_mask_file
from relaxprune.support.tensor_header import read_header

from .layers import BROKEN, break_file, write_layer, write_layers


def stamps(folder: Path) -> dict[Path, int]:
    """Return when each file of the answers was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "layers").rglob("*") if path.is_file()}


def test_every_answer_is_that_of_the_layer_by_itself(tmp_path: Path) -> None:
    files = write_layers(tmp_path / "layers", 4)
    for file, how in zip(files, BROKEN, strict=False):
        break_file(file, how)
    seen: list[FileOutcome] = []
    summary = solve_files(files, tmp_path / "out", sparsity=0.5, jobs=2, on_file=seen.append, effort="fast")
    assert [outcome.name for outcome in summary.outcomes] == [file.stem for file in files]
    assert sorted(seen, key=lambda outcome: outcome.name) == list(summary.outcomes)
    for outcome, reason in zip(summary.of("failed"), BROKEN.values(), strict=True):
        assert reason in outcome.reason and outcome.final and reason in str(summary)
    (solved,) = summary.of("solved")
    tensors = load_file(files[3])
    alone = solve(MaskProblem(tensors["weight"], tensors["gram"], KSparse(4)), effort="fast")
    masks, facts = read_mask_file(summary.out / "layers" / solved.name)
    assert torch.equal(masks["weight"], alone.mask) and facts["objective"] == alone.objective == solved.objective
    assert facts["lower_bound"] == alone.lower_bound == solved.lower_bound and solved.status == alone.status.name
    assert solved.threads == facts["threads"] == max(1, torch.get_num_threads() // 2)
    assert json.loads((summary.out / "summary.json").read_text()) == json.loads(json.dumps(summary.to_dict()))


def test_processes_that_are_started_share_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    shared = {(jobs, files): solving_files._limits(FileOptions(jobs=jobs), files) for jobs, files in ((3, 9), (8, 2))}
    assert {key: (limits.jobs, limits.threads) for key, limits in shared.items()} == {(3, 9): (3, 2), (8, 2): (2, 3)}


def test_only_what_has_changed_is_solved_again(tmp_path: Path) -> None:
    files, out = write_layers(tmp_path / "layers", 5), tmp_path / "out"
    break_file(files[0], "cut")
    solve_files(files[:4], out, sparsity=0.5, solver="wanda")
    before = stamps(out)
    again = solve_files(files[:4], out, sparsity=0.5, solver="wanda", retries=3)
    assert again.counts() == {"solved": 0, "kept": 3, "failed": 1} and stamps(out) == before
    assert not any(outcome.attempts for outcome in again.outcomes)
    write_layer(files[0], 70)
    write_layer(files[1], 71)
    mask = out / "layers/layer002/masks.safetensors"
    mask.write_bytes(mask.read_bytes()[:-1])
    (out / "layers/layer003/.masks.safetensors.0123456789abcdef0123456789abcdef.part").touch()  # of a killed writer
    third = solve_files(files, out, sparsity=0.5, solver="wanda", jobs=2)
    assert [outcome.state for outcome in third.outcomes] == ["solved", "solved", "solved", "kept", "solved"]
    tensors = load_file(files[1])
    expected = solve(MaskProblem(tensors["weight"], tensors["gram"], KSparse(4)), "wanda").mask
    assert torch.equal(read_masks(out / "layers/layer001")["weight"], expected)
    assert not list(out.rglob("*.part"))
    with pytest.raises(RelaxPruneError, match=r"answers to another question: target.sparsity was 0.5 and is now 0.25"):
        solve_files(files, out, sparsity=0.25, solver="wanda")


def test_a_file_that_cannot_be_read_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    files = write_layers(tmp_path / "layers", 1)
    with monkeypatch.context() as patch:
        patch.setattr("relaxprune.layer_files.solving_files.read_header", refuse)
        (outcome,) = solve_files(files, tmp_path / "out", sparsity=0.5).outcomes
    assert outcome.failed and not outcome.final and "Permission denied" in outcome.reason
    assert solve_files(files, tmp_path / "out", sparsity=0.5, solver="fw").counts()["solved"] == 1


def test_weights_that_move_and_a_proof_lie_beside_the_mask(tmp_path: Path) -> None:
    files = write_layers(tmp_path / "layers", 1)
    summary = solve_files(files, tmp_path / "out", pattern="2:4", options=FileOptions(weights="refit", certify="exact"))
    folder = tmp_path / "out/layers/layer000"
    weight, mask = load_file(folder / "weight.safetensors")["weight"], read_masks(folder)["weight"]
    assert (weight[~mask] == 0).all() and (weight[mask] != 0).all() and mask.sum() == 16
    assert load_certificate(folder / "certificate.safetensors").lower_bound == summary.outcomes[0].lower_bound
    assert summary.solver == "reconstruct" and not summary.left_out


def test_memory_decides_what_begins(tmp_path: Path) -> None:
    from multiprocessing import active_children

    files = write_layers(tmp_path / "layers", 3)
    write_layer(files[2], 2, rows=256, cols=64)
    needed = [solving_bytes(read_header(file, "file"), FileOptions(), None) for file in files]
    most: list[int] = []
    summary = solve_files(
        files,
        tmp_path / "out",
        sparsity=0.5,
        solver="wanda",
        jobs=2,
        total_memory_bytes=PROCESS_BYTES + needed[0],
        on_file=lambda _: most.append(len(active_children())),
    )
    assert [outcome.state for outcome in summary.outcomes] == ["solved", "solved", "failed"]
    reason = summary.outcomes[2].reason
    assert reason.startswith("it needs about 0.3") and "GiB that may be used" in reason
    assert max(most) <= 1, "one process at a time"
    more = solve_files(files, tmp_path / "out", sparsity=0.5, solver="wanda")
    assert more.counts() == {"solved": 1, "kept": 2, "failed": 0}, "such a failure is tried again"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, "exactly one of sparsity"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one of sparsity"),
        ({"sparsity": 0.5, "solver": "fww"}, "did you mean 'fw'"),
        ({"sparsity": 0.5, "efort": "fast"}, "did you mean 'effort'"),
        ({"sparsity": 0.5, "job": 2}, "did you mean 'jobs'"),
        ({"sparsity": 0.5, "jobs": 0}, "jobs must be a whole number of at least 1"),
        ({"sparsity": 0.5, "retries": -1}, "retries must be"),
        ({"sparsity": 0.5, "total_memory_bytes": 0}, "total_memory_bytes must be"),
        ({"sparsity": 0.5, "start": torch.ones(4, 8, dtype=torch.bool)}, "start must be the name"),
        ({"sparsity": 0.5, "certify": "best"}, "certify must be one of"),
        ({"sparsity": 0.5, "certify_rows": 2}, "certify is None"),
        ({"sparsity": 0.5, "certify": "fw", "certify_rows": 2}, "rows is only for diagonal and sdp"),
        ({"sparsity": 0.5, "certify": "fw", "weights": "refit"}, "certify must be exact with weights that move"),
        ({"sparsity": 0.5, "damping": 0.1}, "damping is 0.1"),
        ({"sparsity": 0.5, "weights": "move"}, "weights must be one of"),
        ({"sparsity": 0.5, "device": "nowhere"}, "device must be one that works here"),
        ({"sparsity": 0.5, "solver": "wanda", "max_iterations": 3}, "which solver 'wanda' does not use"),
        ({"sparsity": 0.5, "options": 3}, "options must be FileOptions"),
    ],
)
def test_what_concerns_all_files_is_refused_before_any_work(tmp_path: Path, words: dict, expected: str) -> None:
    files = write_layers(tmp_path / "layers", 1)
    with pytest.raises(RelaxPruneError, match=expected):
        solve_files(files, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


def test_files_and_folders_that_cannot_be_right(tmp_path: Path) -> None:
    files = write_layers(tmp_path / "layers", 1)
    (tmp_path / "other").mkdir()
    twin = write_layer(tmp_path / "other/layer000.safetensors", 1)
    wrong = [
        ([], tmp_path / "out", "at least one path"),
        (str(files[0]), tmp_path / "out", "must be a sequence"),
        ([*files, tmp_path / "none"], tmp_path / "out", "none' does not exist"),
        ([*files, twin], tmp_path / "out", "must have different names"),
        (files, tmp_path / "layers", "is not empty"),
        (files, files[0], "is a file"),
    ]
    for given, out, expected in wrong:
        with pytest.raises(RelaxPruneError, match=expected):
            solve_files(given, out, sparsity=0.5)
    assert not (tmp_path / "out").exists()
