"""Joining the ranks that a launcher has started: torchrun, accelerate launch, srun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist  # there in every torch, but empty in some

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.sentences import first_line

from .launch import Launch
from .ranks import ALONE, RankError, Ranks

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from .group import Group

_TO_COME = timedelta(minutes=5)  # for all ranks to be started
_JOINED = count()  # how often this process has joined others
_FOR_EVER = timedelta(days=365)  # ranks wait for each other as long as there is work; ``Watch`` ends what has died


@contextmanager
def joined() -> Iterator[Ranks]:
    """Share what is done inside with the processes that a launcher has started beside this one.

    The launcher says so in the environment variables that torch.distributed reads: RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT, or, where they are not set, in those of a Slurm step. Tensors on the CPU are sent by gloo, those on a
    GPU by NCCL; each rank of a machine takes the accelerator of its LOCAL_RANK. A default process group that is there
    already is left to what it is used for.

    Yields:
        The ranks; ``ALONE`` if there is only this one.

    Raises:
        RelaxPruneError: the variables are not whole, or this torch cannot do it.
        RankError: another rank has died, hangs or has failed, in one sentence that names it.
    """
    launch = Launch.of(os.environ)
    if launch is None:
        yield ALONE
        return
    ranks = _join(launch)
    try:
        yield ranks
    except BaseException as error:
        better = ranks.leave(error)
        if better is error:
            raise
        assert better is not None  # it takes the error's place
        raise better from None
    ranks.leave(None)


def _join(launch: Launch) -> Group:
    """Meet the other ranks.

    Raises:
        RelaxPruneError: this torch cannot do it.
        RankError: some have not come in time.
    """
    if not dist.is_available():
        raise RelaxPruneError("several ranks need a torch with torch.distributed, got one without: run one process")
    from torch.distributed.distributed_c10d import PrefixStore

    from .group import Group
    from .watch import Watch

    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(launch.local % torch.accelerator.device_count())
    hosts = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = _store(launch)
        beside = _store(launch)  # a connection of its own: who waits for a key keeps the other one busy
        prefix = f"relaxprune/{next(_JOINED)}"  # the store outlives what is done in it
        watch = Watch(PrefixStore(prefix, beside), launch.rank, launch.world, hosts=hosts)
        watch.start(_TO_COME.total_seconds())
        group = _group(launch, PrefixStore(f"{prefix}/group", store))
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the {launch.world} ranks did not find each other: {first_line(error)}") from error
    return Group(watch, group)


def _store(launch: Launch) -> Store:
    """Return a connection to what the ranks share, which rank 0 has unless its launcher does."""
    from torch.distributed.rendezvous import rendezvous

    host = f"[{launch.host}]" if ":" in launch.host else launch.host
    where = f"tcp://{host}:{launch.port}?rank={launch.rank}&world_size={launch.world}"
    store: Store = next(rendezvous(where, timeout=_TO_COME))[0]
    return store


def _group(launch: Launch, store: Store) -> dist.ProcessGroup | None:
    """Return a group that sends tensors of any device; None for the default one, if there was none before."""
    if not dist.is_initialized():
        dist.init_process_group(store=store, rank=launch.rank, world_size=launch.world, timeout=_FOR_EVER)
        return None
    # A group without a backend of its own has that of the default one, which may be for GPUs only.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    beside: dist.ProcessGroup = dist.new_group(backend=backend, timeout=_FOR_EVER)
    return beside
