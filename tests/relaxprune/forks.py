"""Ranks as forks of the test's process, which has imported everything: that takes most of a small run's time."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relaxprune.ranks.wire import pack, unpack

_MOST_S = 100.0


@dataclass(frozen=True)
class Ended:
    """How one rank ended.

    Attributes:
        code: its exit code, or the negative number of the signal that ended it.
        told: what its work returned, as ``Ranks.exchange`` would tell it; None unless the code is 0.
        errors: what it wrote to stderr.
        seconds: from the start of all ranks to its end.
    """

    code: int
    told: Any
    errors: str
    seconds: float


def forked(world: int, work: Callable[[int], Any], folder: Path) -> list[Ended]:
    """Run ``work`` with its rank's number in as many processes, with the variables that a launcher sets.

    An int that it returns is the exit code; anything else is told. A rank that takes too long is killed.
    """
    port, started = _free_port(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    children = {_start(rank, world, port, work, folder): rank for rank in range(world)}
    ended: dict[int, Ended] = {}
    while len(ended) < world:
        for child, rank in children.items():
            if rank not in ended and (status := _status(child)) is not None:
                ended[rank] = _ended(folder, rank, status, time.monotonic() - started)
        if time.monotonic() - started > _MOST_S:
            for child in (child for child, rank in children.items() if rank not in ended):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [ended[rank] for rank in range(world)]


def told(world: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what every rank tells, all of which must end well."""
    ended = forked(world, work, folder)
    assert [rank.code for rank in ended] == [0] * world, "\n".join(rank.errors for rank in ended)
    return [rank.told for rank in ended]


def _start(rank: int, world: int, port: int, work: Callable[[int], Any], folder: Path) -> int:
    """Fork a rank."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_PORT=str(port))
        torch.set_num_threads(1)
        result = work(rank)
        code = result if isinstance(result, int) else 0
        (folder / f"{rank}.told").write_bytes(pack(None if isinstance(result, int) else result).numpy().tobytes())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _status(child: int) -> int | None:
    """Return how a child ended, None while it lives."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _ended(folder: Path, rank: int, code: int, seconds: float) -> Ended:
    """Read what an ended rank has left."""
    path = folder / f"{rank}.told"
    value = unpack(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)) if code == 0 else None
    return Ended(code, value, (folder / f"{rank}.err").read_text(encoding="utf-8"), seconds)


def _free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
