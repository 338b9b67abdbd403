"""Processes that die: their file is tried again, and only their file; and none is left when the caller ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..cli.test_endings import start
from ..command_line import run_process
from .layers import write_layer, write_layers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")
PATIENCE_S = 180

SCRIPT = '''
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path

from relaxprune import solve_files
from relaxprune.solvers.reference.saliency import Wanda


@dataclass(frozen=True)
class Deadly(Wanda):
    """Kills its process on layers of 5 rows always, on layers of 6 rows once."""

    def run(self, problem, run):
        died = Path(f"died_{problem.shape[0]}")
        if problem.shape[0] == 5 or (problem.shape[0] == 6 and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(problem, run)


if __name__ == "__main__":
    files = sorted(Path("layers").iterdir())
    summary = solve_files(files, "out", sparsity=0.5, solver=Deadly(), jobs=2)
    for outcome in summary.outcomes:
        print(outcome.name, outcome.state, outcome.attempts, outcome.reason)
'''

UNGUARDED = """
from pathlib import Path

from relaxprune import solve_files

solve_files(sorted(Path("layers").iterdir()), "out", sparsity=0.5)
"""


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that are there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_there(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: object, process: subprocess.Popen[str]) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end and process.poll() in (None, -signal.SIGKILL), process.communicate()
        time.sleep(0.02)


def test_a_file_whose_process_dies_is_tried_again_alone(tmp_path: Path) -> None:
    files = write_layers(tmp_path / "layers", 5)
    write_layer(files[0], 50, rows=5)
    write_layer(files[1], 60, rows=6)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_process(["script.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "layer000 failed 2 its process was killed by SIGKILL, 2 times: memory may have run out"
    assert lines[1] == "layer001 solved 2 None"
    assert [line.split()[1] for line in lines[2:]] == ["solved"] * 3
    files[0].unlink()
    again = run_process(["script.py"], tmp_path)
    assert [line.split()[1:3] for line in again.stdout.splitlines()] == [["kept", "0"]] * 4


def test_a_script_without_the_guard_is_told(tmp_path: Path) -> None:
    write_layers(tmp_path / "layers", 1)
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = run_process(["script.py"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("because its processes import the script")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees processes in /proc")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL])
def test_nothing_goes_on_when_the_command_ends(tmp_path: Path, number: signal.Signals) -> None:
    write_layers(tmp_path / "layers", 12)
    words = ["solve", *sorted(map(str, (tmp_path / "layers").iterdir())), "--sparsity", "0.5"]
    words += ["--effort", "best", "--jobs", "2", "--out", "out"]
    process = start(words, tmp_path)
    answers = tmp_path / "out/layers"
    wait_until(lambda: len(list(answers.glob("*/record.json"))) > 1, process)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE_S)[1]
    wait_until(lambda: not any(map(is_there, workers)), process)
    kept = len(list(answers.glob("*/record.json")))
    assert 1 < kept < 12
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert said.startswith("relaxprune: interrupted") and "the same command goes on" in said
        assert len(said.strip().splitlines()) == 1, said
    again = run_process(["-m", "relaxprune", *words], tmp_path)
    assert again.returncode == 0, again.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["kept"], summary["solved"]) == (kept, 12 - kept)
