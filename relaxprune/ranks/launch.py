"""What a launcher says to each of the ranks that it has started, in environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relaxprune.problems.errors import RelaxPruneError

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Slurm numbers the processes of a step, and leaves it to them to find each other.
_IN_STEP = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_FIRST_PORT, _PORTS = 15000, 15000  # below those that systems give to connections by themselves
_STEPS = 17  # steps of a job that have ports of their own


@dataclass(frozen=True)
class Launch:
    """One rank, and where it meets the others.

    Attributes:
        rank: its number.
        world: how many there are.
        local: its number among those of its machine.
        host: the machine of rank 0.
        port: a free one there.
    """

    rank: int
    world: int
    local: int
    host: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """Return what the variables of torch.distributed say, or else those of a Slurm step; None for one process.

        Raises:
            RelaxPruneError: the variables are not whole.
        """
        variables = _of_slurm(environment) if "RANK" not in environment else environment
        if "RANK" not in variables or variables.get("WORLD_SIZE", "1") == "1":
            return None
        missing = [name for name in _NAMES if not variables.get(name)]
        if missing:
            raise RelaxPruneError(f"a launcher must set {', '.join(_NAMES)} for several ranks, got no {missing[0]}")
        rank, world, port = (_number(variables, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        if rank >= world:
            raise RelaxPruneError(f"RANK must be below WORLD_SIZE, got {rank} of {world}")
        return cls(rank, world, _number(variables, "LOCAL_RANK"), variables["MASTER_ADDR"], port)


def _of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torch.distributed for a process of a Slurm step with several, else the environment.

    A batch script has no step of its own: it is one process, and waits for nobody.
    """
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return dict(environment)
    found = {"MASTER_ADDR": environment.get("SLURM_LAUNCH_NODE_IPADDR", "")}
    if "SLURM_JOB_ID" in environment:
        job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
        found["MASTER_PORT"] = str(_FIRST_PORT + (_STEPS * job + step) % _PORTS)
    ranks = {name: environment[slurm] for name, slurm in _IN_STEP.items() if slurm in environment}
    return {**found, **environment, **ranks}


def _number(variables: Mapping[str, str], name: str) -> int:
    """Return the whole number that a variable holds, 0 if it is not set.

    Raises:
        RelaxPruneError: it holds something else.
    """
    text = variables.get(name, "0")
    if not (text.isascii() and text.isdigit()):
        raise RelaxPruneError(f"{name} must be a whole number, got {text!r}")
    return int(text)
