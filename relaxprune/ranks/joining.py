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

from .ranks import ALONE, RankError, Ranks

if TYPE_CHECKING:
    from .group import Group

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TO_COME = timedelta(minutes=5)  # for all ranks to be started
_JOINED = count()  # how often this process has joined others
_FOR_EVER = timedelta(days=365)  # ranks wait for each other as long as there is work; ``Watch`` ends what has died


@contextmanager
def joined() -> Iterator[Ranks]:
    """Share what is done inside with the processes that a launcher has started beside this one.

    The launcher says so in the environment variables that torch.distributed reads: RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT. Tensors on the CPU are sent by gloo, those on a GPU by NCCL; each rank of a machine takes the
    accelerator of its LOCAL_RANK. A default process group that is there already is used beside what it is used for.

    Yields:
        The ranks; ``ALONE`` if there is only this one.

    Raises:
        RelaxPruneError: the variables are not whole, or this torch cannot do it.
        RankError: another rank has died, hangs or has failed, in one sentence that names it.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    ranks = _join()
    try:
        yield ranks
    except BaseException as error:
        better = ranks.leave(error)
        if better is error:
            raise
        assert better is not None  # it takes the error's place
        raise better from None
    ranks.leave(None)


def _join() -> Group:
    """Meet the other ranks.

    Raises:
        RelaxPruneError: as ``joined`` says.
        RankError: some have not come in time.
    """
    if not dist.is_available():
        raise RelaxPruneError("several ranks need a torch with torch.distributed, got one without: run one process")
    missing = [name for name in _NAMES if not os.environ.get(name)]
    if missing:
        raise RelaxPruneError(f"a launcher must set {', '.join(_NAMES)} for several ranks, got no {missing[0]}")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from .group import Group
    from .watch import Watch

    if torch.accelerator.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.accelerator.set_device_index(local % torch.accelerator.device_count())
    try:
        store, rank, world = next(rendezvous("env://", timeout=_TO_COME))
        # A connection of its own: who waits for a key keeps the other one busy.
        beside, _, _ = next(rendezvous("env://", timeout=_TO_COME))
        hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        prefix = f"relaxprune/{next(_JOINED)}"  # the store outlives what is done in it
        watch = Watch(PrefixStore(prefix, beside), rank, world, hosts=hosts)
        watch.start(_TO_COME.total_seconds())
        if dist.is_initialized():
            group = dist.new_group(timeout=_FOR_EVER)
        else:
            group = None
            shared = PrefixStore(f"{prefix}/group", store)
            dist.init_process_group(store=shared, rank=rank, world_size=world, timeout=_FOR_EVER)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the {os.environ['WORLD_SIZE']} ranks did not find each other: {first_line(error)}") from error
    return Group(watch, group)
