"""Runs that die, or are refused something, at any call to the system that writes: what is left, and that they go on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from relaxprune.cli import main
from relaxprune.runs.run_folder import RunFolder

from ..system_calls import Dead, disk
from ..tiny_llama import save_tiny_llama, write_text

# Every option that writes files of its own, or decides what the others hold.
OPTIONS = {
    "plain": ["--sparsity", "0.5"],
    "refit": ["--sparsity", "0.5", "--refit"],
    "corrected": ["--sparsity", "0.5", "--refit", "--correct", "0.5"],
    "tuned": ["--sparsity", "0.5", "--refit", "--tune", "1", "--windows", "130"],  # two batches
    "refined": ["--sparsity", "0.5", "--refine", "1"],
    "certified": ["--sparsity", "0.5", "--certify", "diagonal"],
    "permuted": ["--pattern", "2:4", "--permute"],
    "allocated": ["--sparsity", "0.5", "--allocation", "model"],
}
CODES = (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EDQUOT, errno.ENOENT, errno.EIO, errno.EACCES)
SAMPLE = 2  # of the calls of each kind of run, spread over all


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_tiny_llama(folder / "tiny", blocks=2)
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module", params=OPTIONS)
def whole(request: pytest.FixtureRequest, place: Path) -> tuple[list[str], Path, int]:
    """The words of a run, a folder of it that nothing has interrupted, and how many calls it made."""
    words = ["prune", str(place / "tiny"), "--calibration", str(place / "text.txt"), "--include", "*.mlp.*", "--quiet"]
    words += ["--windows", "2", "--length", "16", "--max-iterations", "4", "--threads", "1"]
    words += [*OPTIONS[request.param], "--out"]
    out = place / request.param
    with disk(out) as watched:
        assert main([*words, str(out)]) in (0, 3)
    return words, out, len(watched.calls)


def chosen(calls: int, long_run: bool, first: int) -> range:
    """The calls to fail: all, or a few that are spread over the run."""
    return range(1, calls + 1) if long_run else range(first, calls + 1, max(1, calls // SAMPLE))


def result(folder: Path) -> dict[str, Any]:
    """What a run has come to, less its times: the bytes of its files, and its numbers."""
    report = json.loads((folder / "relaxprune.json").read_text())["report"]
    del report["seconds"]
    for item in (*report["layers"], *report["tunings"], report["refinement"] or {}):
        item.pop("seconds", None)
        item.pop("certificate_seconds", None)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kept = {name: data for name, data in files.items() if not name.startswith("certificates/")}
    return {"files": {**kept, "relaxprune.json": b""}, "names": sorted(files), "report": report}


def test_a_run_that_is_killed_goes_on(
    whole: tuple[list[str], Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str], long_run: bool
) -> None:
    words, meant, calls = whole
    for call in chosen(calls, long_run, 1 + len(str(meant)) % 7):
        out = tmp_path / str(call)
        with disk(out, call, Dead(), then="all"), pytest.raises(Dead):
            main([*words, str(out)])
        begun = RunFolder(out, {})
        fresh = not begun.finished and not begun.solved_blocks and not (out / ".relaxprune/allocation.json").exists()
        more = [] if fresh and call % 2 else ["--resume"]
        assert main([*words, str(out), *more]) in (0, 3), (call, more, capsys.readouterr().err)
        assert result(out) == result(meant), call


def test_what_the_system_refuses_is_one_sentence(
    whole: tuple[list[str], Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str], long_run: bool
) -> None:
    words, meant, calls = whole
    for call in chosen(calls, long_run, 1 + len(str(meant)) % 5):
        out, code = tmp_path / str(call), CODES[call % len(CODES)]
        then = ("make", "", "all")[call % 3]
        capsys.readouterr()
        with disk(out, call, OSError(code, os.strerror(code), str(out)), then=then) as refusing:
            ended = main([*words, str(out)])
        said = capsys.readouterr().err
        assert ended in (0, 2, 3) and said.count("\n") == (ended != 0), (call, code, then, ended, said)
        assert ended != 2 or "written" in said or "kept in" in said or "is finished" in said, (call, code, then, said)
        if then != "all" and refusing.calls[call - 1] != "os.remove":  # what may not be removed stays
            assert not [path for path in out.rglob("*.part")], (call, code)
        assert main([*words, str(out), "--resume"]) in (0, 3), (call, code, then, capsys.readouterr().err)
        assert result(out) == result(meant), (call, code, then)
