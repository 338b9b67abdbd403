"""Ranks that talk through torch.distributed: gloo between processors, NCCL between GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .ranks import Ranks
from .watch import Watch
from .wire import pack, unpack

_PIECE = 2**23  # entries that are summed at once: bounds what a sum holds beside its tensor
_FIRST_NAP_S, _LONGEST_NAP_S = 2e-4, 1e-2  # between looks at whether the others have come


@dataclass
class Traffic:
    """What a rank has sent to the others, and how long it has waited for them.

    Attributes:
        summed_bytes: partial sums sent, and sums of its part.
        told_bytes: all else.
        seconds: in exchanges, mostly of waiting for the slowest rank.
    """

    summed_bytes: int = 0
    told_bytes: int = 0
    seconds: float = 0.0


class Group(Ranks):
    """Several processes, joined by ``joined``.

    Attributes:
        traffic: counted from the start.

    Args:
        watch: notices ranks that are gone; it knows who is who.
        group: of torch.distributed, None for the default one.
    """

    def __init__(self, watch: Watch, group: dist.ProcessGroup | None) -> None:
        self.rank, self.world = watch.rank, watch.world
        self.traffic = Traffic()
        self._watch, self._group = watch, group

    def exchange(self, own: Any) -> list[Any]:
        """Tell all ranks something, and return what every rank tells, in the order of the ranks."""
        data = pack(own)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._done(lambda: dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group, async_op=True))
        return [unpack(self._from(rank, data, int(size))) for rank, size in enumerate(sizes)]

    def broadcast(self, value: Any) -> Any:
        """Return what the leader tells; the other ranks' ``value`` is ignored."""
        data = pack(value) if self.leader else torch.empty(0, dtype=torch.uint8)
        size = self._from(0, torch.tensor([len(data)]), 1)
        return unpack(self._from(0, data, int(size)))

    def all_sum_(self, *tensors: Tensor) -> None:
        """Replace float64 tensors, of the same shapes on all ranks, by their sums, added in the order of the ranks.

        Every rank adds up a part of each tensor and hands it out: two tensors sent and received, however many ranks.
        """
        for tensor in tensors:
            for piece in tensor.view(-1).split(_PIECE):
                self._sum_(piece)

    def check(self, *_progress: object) -> None:
        """Raise RankError if another rank is known to have failed."""
        self._watch.check()

    def leave(self, error: BaseException | None) -> BaseException | None:
        """End this rank's part, and tell the others why if it has failed.

        Returns:
            What to raise in the place of ``error``.
        """
        better = self._watch.leave(error)
        self.silent = self._watch.silent
        if error is None:  # or else some may be gone, and the others would wait for them
            dist.destroy_process_group(self._group)
        return better

    def _from(self, rank: int, data: Tensor, size: int) -> Tensor:
        """Return the ``size`` entries of ``data`` of one rank; the others give only the dtype."""
        held = data if rank == self.rank else torch.empty(size, dtype=data.dtype)
        if rank == self.rank:
            self.traffic.told_bytes += held.numel() * held.element_size() * (self.world - 1)
        self._done(lambda: dist.broadcast(held, rank, group=self._group, async_op=True))
        return held

    def _sum_(self, piece: Tensor) -> None:
        """Replace (entries,) by their sum over ranks."""
        size = -(-len(piece) // self.world)  # of the part that each rank adds up
        sent = piece.new_zeros(self.world, size)
        sent.view(-1)[: len(piece)] = piece
        parts = torch.empty_like(sent)  # row r: this rank's part, of rank r
        self._done(lambda: dist.all_to_all_single(parts, sent, group=self._group, async_op=True))
        own = parts[0].clone()
        for part in parts[1:]:
            own += part
        self._done(lambda: dist.all_gather(list(sent), own, group=self._group, async_op=True))
        piece.copy_(sent.view(-1)[: len(piece)])
        self.traffic.summed_bytes += 2 * own.numel() * own.element_size() * (self.world - 1)

    def _done(self, begin: Callable[[], Any]) -> None:
        """Begin to talk to the others and wait until all have come, open to signals and to the death of any of them.

        Raises:
            RankError: one has failed.
            RuntimeError: torch.distributed cannot do it.
        """
        started, nap, work = time.monotonic(), _FIRST_NAP_S, None
        try:
            with self._watch.waiting():
                work = begin()
                while not work.is_completed():
                    self._watch.check()
                    time.sleep(nap)
                    nap = min(2 * nap, _LONGEST_NAP_S)
                work.wait()
        except RuntimeError as error:
            if work is None and not isinstance(error, dist.DistError):
                raise  # it was refused before anything was sent
            # A connection is gone: who was it?
            raise self._watch.explained(error) from error
        finally:
            self.traffic.seconds += time.monotonic() - started
