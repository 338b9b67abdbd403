"""One process per folder: who is refused, what a dead process leaves, and that nothing of it stays."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from relaxprune.cli import main
from relaxprune.problems import RelaxPruneError
from relaxprune.support.folder_lock import LOCK_NAME, folder_lock, refuse_held_folder
from relaxprune.support.new_folder import copy_others

from ..command_line import arguments, only_sentence

HOLD = """
import sys, time
from pathlib import Path
from relaxprune.support.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder and the process that holds it."""
    out = tmp_path / "held"
    with subprocess.Popen([sys.executable, "-P", "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield out, process
        process.kill()


def test_the_second_process_is_told_who_is_first(holder: tuple[Path, subprocess.Popen[str]]) -> None:
    out, process = holder
    expected = f"a run is under way in {str(out)!r} \\(process {process.pid} on {socket.gethostname()}\\)"
    for refused in (lambda: folder_lock(out).__enter__(), lambda: refuse_held_folder(out)):
        with pytest.raises(RelaxPruneError, match=expected):
            refused()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / LOCK_NAME).exists()
    refuse_held_folder(out)
    assert not (out / LOCK_NAME).exists(), "what a dead process left is removed"
    with folder_lock(out):
        assert (out / LOCK_NAME).read_text().split() == [str(os.getpid()), socket.gethostname()]
    assert list(out.iterdir()) == []


def test_commands_that_write_into_a_held_folder_are_refused(
    place: Path, holder: tuple[Path, subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = holder
    run = tmp_path / "run"
    assert main(arguments(place, run)) == 0
    mine, before = run / "masks.safetensors", sorted(path.name for path in run.iterdir())
    shutil.copytree(run, out, dirs_exist_ok=True)
    capsys.readouterr()
    for words in (
        arguments(place, out),
        arguments(place, out, "--resume"),
        ["demo", str(place / "tiny"), "--out", str(out)],
        ["eval", str(out), "--windows", "1", "--length", "16"],
        ["eval", str(place / "tiny"), "--record", str(out), "--windows", "1", "--length", "16"],
        ["report", str(out)],
        ["masks", "compact", str(run), str(out)],
        ["masks", "compact", str(out), str(tmp_path / "small")],
        ["masks", "unpack", str(mine), str(out / "bools.safetensors")],
    ):
        assert main(words) == 2, words
        assert "a run is under way in" in only_sentence(capsys), words
    assert sorted(path.name for path in out.iterdir()) == sorted([*before, LOCK_NAME])


def test_threads_of_one_process_exclude_each_other_and_waiting_helps(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out"):
        with pytest.raises(RelaxPruneError, match=f"process {os.getpid()} on"), folder_lock(tmp_path / "out"):
            pass
        started = time.perf_counter()
        with pytest.raises(RelaxPruneError, match="under way"), folder_lock(tmp_path / "out", wait_s=0.3):
            pass
        assert 0.25 < time.perf_counter() - started < 5
    assert list(tmp_path.iterdir()) == [], "a folder that was made for nothing is gone"


def test_a_lock_is_never_copied(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a").write_text("a")
    with folder_lock(tmp_path / "run"):
        copy_others(tmp_path / "run", tmp_path / "copy", [])
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["a"]


def test_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relaxprune.support.folder_lock.FileLock", filelock.SoftFileLock)
    with folder_lock(tmp_path / "out"), pytest.raises(RelaxPruneError, match=f"process {os.getpid()} on"):
        refuse_held_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder with an open file")
@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), RuntimeError("cannot be read back")])
def test_a_folder_that_is_removed_meanwhile_is_said_to_be(tmp_path: Path, error: Exception) -> None:
    sentence = "out' was removed while it was written to: nothing in it is kept"
    with pytest.raises(RelaxPruneError, match=sentence), folder_lock(tmp_path / "out"):
        shutil.rmtree(tmp_path / "out")
        raise error
    with pytest.raises(type(error)), folder_lock(tmp_path / "out"):
        raise error
