"""Which ranks a launcher has started, by its variables: those of torch.distributed, or those of a Slurm step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relaxprune.problems import RelaxPruneError
from relaxprune.ranks import joined
from relaxprune.ranks.launch import Launch

from ..forks import told

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


def test_a_step_of_slurm_says_who_is_who() -> None:
    port = 15000 + (17 * 4711 + 2) % 15000
    assert Launch.of(STEP) == Launch(3, 4, 1, "10.0.0.7", port)
    named = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert Launch.of(STEP | named) == Launch(3, 4, 1, "node1", 29500)
    own = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert Launch.of(STEP | named | own) == Launch(0, 2, 0, "node1", 29500)


@pytest.mark.parametrize("tasks", [{}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_is_one_process(tasks: dict[str, str]) -> None:
    script = {name: value for name, value in STEP.items() if name != "SLURM_STEP_NUM_TASKS"}
    assert Launch.of({**script, "SLURM_PROCID": "0", **tasks}) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"SLURM_PROCID": ""}, "a launcher must set RANK, .* got no RANK"),
        ({"SLURM_LAUNCH_NODE_IPADDR": ""}, "got no MASTER_ADDR"),
        ({"SLURM_JOB_ID": "4711_3"}, "SLURM_JOB_ID must be a whole number, got '4711_3'"),
        ({"SLURM_PROCID": "4"}, "RANK must be below WORLD_SIZE, got 4 of 4"),
    ],
)
def test_variables_that_cannot_be_right_are_refused(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(RelaxPruneError, match=sentence):
        Launch.of(STEP | change)


def test_processes_of_a_step_join(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        port = os.environ["MASTER_PORT"]
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
            del os.environ[name]
        mine = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
        os.environ.update({**STEP, **mine, "MASTER_PORT": port})
        with joined() as ranks:
            return ranks.exchange(ranks.rank)

    assert told(2, work, tmp_path) == [[0, 1]] * 2
