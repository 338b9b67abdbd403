"""``relaxprune prune`` in several processes: the folder of one process, one voice, and a resume with any number."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from relaxprune.cli import main
from relaxprune.pruning.stage_solver import StageSolver
from relaxprune.ranks.watch import Watch
from relaxprune.runs import RunFolder
from relaxprune.runs.run_record import read_record

from ..command_line import SAME, arguments
from ..forks import Ended, forked

MORE = ["--windows", "90", "--quiet"]  # a few batches, samples of the model among them


def ranks_of(world: int, words: list[str], folder: Path) -> list[Ended]:
    """Run a command in several processes."""
    return forked(world, lambda _: main(words), folder)


def content(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in SAME]


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The folder of one process."""
    out = place / "alone"
    threads = torch.get_num_threads()
    assert main(arguments(place, out, *MORE)) == 0
    torch.set_num_threads(threads)
    return out


@pytest.mark.parametrize(("world", "more"), [(2, []), (4, ["--offload", "disk"])], ids=["2", "4, offloaded"])
def test_the_folder_is_that_of_one_process(
    world: int, more: list[str], place: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = ranks_of(world, arguments(place, out, *MORE, *more), tmp_path / "ranks")
    assert [rank.code for rank in ended] == [0] * world, ended
    assert content(out) == content(finished)
    records = [read_record(folder) for folder in (out, finished)]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    assert not (out / ".relaxprune").exists()
    again = ranks_of(2, arguments(place, out, *MORE, "--resume"), tmp_path / "again")
    assert [rank.code for rank in again] == [0, 0], again


@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_rank_ends_the_job_and_others_go_on(victim: int, place: Path, finished: Path, tmp_path: Path) -> None:
    """A rank that dies while it solves its second block."""
    out = tmp_path / "out"

    def work(rank: int) -> int:
        solve = StageSolver._solved

        def solved(self, mask_solver, job, stage):
            if rank == victim and stage.index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return solve(self, mask_solver, job, stage)

        StageSolver._solved = solved
        return main(arguments(place, out, *MORE))

    ended = forked(3, work, tmp_path / "ranks")
    assert [rank.code for rank in ended] == [-9 if rank == victim else 2 for rank in range(3)], ended
    assert max(rank.seconds for rank in ended) < 60
    voice = 1 if victim == 0 else 0
    said = [line for line in ended[voice].errors.splitlines() if line.startswith("relaxprune:")]
    assert len(said) == 1 and re.match(rf"relaxprune: rank {victim} of 3 \(.*\) has died", said[0])
    assert said[0].endswith(f"1 finished blocks are kept in {out}, and --resume continues from them")
    assert all("relaxprune:" not in rank.errors for number, rank in enumerate(ended) if number != voice)
    assert RunFolder(out, {}).solved_blocks == [0]
    resumed = ranks_of(2, arguments(place, out, *MORE, "--resume"), tmp_path / "resumed")
    assert [rank.code for rank in resumed] == [0, 0], resumed
    assert content(out) == content(finished)


def test_what_is_wrong_is_said_once(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = ranks_of(3, arguments(place, out, *MORE, "--shrinkage", "7"), tmp_path / "wrong")
    assert [rank.code for rank in ended] == [2, 2, 2]
    assert [rank.errors.count("relaxprune:") for rank in ended] == [1, 0, 0], ended
    assert "shrinkage must lie in [0, 1]" in ended[0].errors and not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    ended = ranks_of(2, arguments(place, out, *MORE), tmp_path / "occupied")
    assert [rank.code for rank in ended] == [2, 2]
    assert [rank.errors.count("relaxprune:") for rank in ended] == [1, 0], ended


def test_a_plan_is_printed_once(place: Path, tmp_path: Path) -> None:
    ended = ranks_of(2, arguments(place, tmp_path / "out", *MORE, "--plan"), tmp_path / "ranks")
    assert [rank.code for rank in ended] == [0, 0], ended
    printed = [(tmp_path / "ranks" / f"{rank}.out").read_text() for rank in (0, 1)]
    assert "predicted" in printed[0] and printed[1] == ""


@pytest.mark.long
def test_torchrun_starts_ranks(place: Path, finished: Path, tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "relaxprune"]
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, *arguments(place, out, *MORE)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert content(out) == content(finished)


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
def test_a_rank_killed_at_any_instant(number: int, place: Path, finished: Path, tmp_path: Path, seed: int) -> None:
    """A random rank of a random number of them dies at a random instant; a resume with another number ends the same."""
    generator = random.Random(1000 * seed + number)
    world, out = generator.choice([2, 3, 4]), tmp_path / "out"
    victim, wait = generator.randrange(world), generator.uniform(0.0, 3.0)

    def work(rank: int) -> int:
        start = Watch.start

        def met(self: Watch, patience_s: float) -> None:
            """From here on; before, a launcher would end the others."""
            start(self, patience_s)
            if rank == victim and os.fork() == 0:
                time.sleep(wait)
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)

        Watch.start = met
        return main(arguments(place, out, *MORE))

    ended = forked(world, work, tmp_path / "ranks")
    assert ended[victim].code in (-9, 0) and max(rank.seconds for rank in ended) < 60
    assert all(rank.code in (0, 2) for index, rank in enumerate(ended) if index != victim), ended
    others = generator.choice([count for count in (1, 2, 3, 4) if count != world])
    resumed = ranks_of(others, arguments(place, out, *MORE, "--resume"), tmp_path / "resumed")
    assert [rank.code for rank in resumed] == [0] * others, resumed
    assert content(out) == content(finished)
