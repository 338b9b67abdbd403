"""Noticing ranks that have died, hang or have failed, so that the others end with the reason and do not wait for ever.

A thread of every rank counts up a number in the store that the ranks share. The leader looks at the numbers of all
ranks, and all ranks at the leader's. The first who finds something wrong writes the verdict into the store, and all
others read it there. What waits for other ranks looks at the verdict (``check``); a process that does not come to look
for a while, for it computes something long, is ended by the thread.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch.distributed.distributed_c10d import Store

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.sentences import first_line

from .process import Home, MainThread
from .ranks import RankError

EXIT_CODE = 2
SILENCE_S = 30.0  # without a sign of life, after which a rank counts as hanging
_BEAT_S = 0.5
_GRACE_S = 15.0  # for this process to end by itself
_PATIENCE_S = 3.0  # for what others say when they end
_SAID = "said"  # what the leader says about its end
_MOST_LOST = 3  # times in a row that the store does not answer


class Watch:
    """Watches over the ranks of a run.

    Attributes:
        rank: number of this process.
        world: number of ranks.
        silent: as in ``Ranks``.

    Args:
        store: shared by all ranks.
        hosts: whether the store lives in this process, so that the others lose it when that ends.
    """

    def __init__(self, store: Store, rank: int, world: int, *, hosts: bool) -> None:
        self.rank, self.world, self.silent = rank, world, False
        self._store, self._hosts = store, hosts
        self._homes = [Home.here()] * world
        self._verdict: tuple[int, str] | None = None  # which rank has failed, and the sentence
        self._since: float | None = None  # when that became known
        self._signs: dict[int, tuple[object, float]] = {}  # rank -> its last sign of life, and when that was new
        self._left: set[int] = set()
        self._looked = time.monotonic()
        self._late: float | None = None
        self._deaf = False  # the store does not answer, and whoever asks it waits for ever
        self._main = MainThread()
        self._patience = SILENCE_S
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="relaxprune-ranks", daemon=True)

    def start(self, patience_s: float) -> None:
        """Tell the others where this process lives, wait until all have done so, and start to watch.

        Raises:
            RankError: one has died, or they have not come in time.
            RuntimeError: the store does not answer.
        """
        own, until = self._homes[self.rank], time.monotonic() + patience_s
        self._store.set(f"home/{self.rank}", own.to_json())
        missing = {*range(self.world)} - {self.rank}
        while missing:
            for rank in [rank for rank in missing if self._store.check([f"home/{rank}"])]:
                self._homes[rank] = Home.from_json(self._store.get(f"home/{rank}").decode())
                missing.remove(rank)
            for rank in {*range(self.world)} - missing:
                if self._homes[rank].is_beside(own) and not self._homes[rank].exists():
                    raise RankError(f"{self._name(rank)} has died before all ranks were there")
            if missing and time.monotonic() > until:
                raise RankError(f"rank {min(missing)} of {self.world} has not come in {patience_s:.0f} s")
            time.sleep(_BEAT_S / 10)
        self._looked = time.monotonic()
        self._thread.start()

    def check(self) -> None:
        """Raise RankError if a rank has failed, or if the store has not answered for long."""
        now = time.monotonic()
        if now - self._looked < self._patience:
            self._late = None
        elif self._late is None:
            self._late = now
        elif self._verdict is None and now - self._late > _PATIENCE_S:  # the thread had its turn, and waits in vain
            self._deaf, self._since = True, now
            self._verdict = (0, f"{self._name(0)} has not answered for {self._patience:.0f} s")
        if self._verdict is not None:
            raise RankError(self._verdict[1])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for other ranks inside: doing nothing is no sign of hanging there."""
        self._main.working = False
        try:
            yield
        finally:
            self._main.working = True

    def explained(self, error: BaseException) -> RankError:
        """Return why a connection to another rank is gone, once that is known."""
        self._patience = min(self._patience, _PATIENCE_S)
        until = time.monotonic() + 2 * _PATIENCE_S
        while self._verdict is None and time.monotonic() < until:
            time.sleep(_BEAT_S / 10)
        if self._verdict is None:
            self._judge(self.rank, f"{self._name(self.rank)} has lost the others: {first_line(error)}")
        assert self._verdict is not None
        return RankError(self._verdict[1])

    def leave(self, error: BaseException | None) -> BaseException | None:
        """Stop watching, tell the others why this process ends, and return what to raise in the place of ``error``."""
        self._main.working = False
        self.silent = self.rank > 1  # unless more is known
        if self._deaf:
            self._ended.set()
            return error
        with suppress(RuntimeError):  # the store may be gone
            error = self._told(error)
        self._ended.set()
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "")
            if self._hosts:
                self._await([f"left/{rank}" for rank in range(self.world)])
        return error

    def _told(self, error: BaseException | None) -> BaseException | None:
        """Tell the others about the error that ends this process, unless another rank is to blame for it."""
        if error is None:
            return None
        said = str(error) if isinstance(error, RelaxPruneError) else f"{type(error).__name__}: {first_line(error)}"
        if self.rank == 0:
            self._store.set(_SAID, said)
        if isinstance(error, KeyboardInterrupt):
            # A launcher ends all ranks when one has died, which may be seen only now.
            self._look(everywhere=True)
            if self.rank:
                self._await(["verdict"])
            self._judge(self.rank, f"{self._name(self.rank)} was interrupted")
            self._take_verdict()
            if self._blames(self.rank):
                self.silent = self.rank > 0
                return error
            assert self._verdict is not None
            error = RankError(self._verdict[1])
        if isinstance(error, RankError):
            # If the leader is gone without a word, the next rank speaks.
            self.silent = self.rank > 0 and not (self.rank == 1 and self._blames(0) and not self._await([_SAID]))
            return error
        self._judge(self.rank, f"{self._name(self.rank)} has failed: {said}")
        # What is wrong for all ranks is said once.
        self.silent = self.rank > 0 and self._await([_SAID]) and self._store.get(_SAID).decode() == said
        return error

    def _blames(self, rank: int) -> bool:
        """Return whether a rank has failed, by the verdict."""
        return self._verdict is not None and self._verdict[0] == rank

    def _watch(self) -> None:
        """Give signs of life and look for those of others, until this rank has left."""
        lost = 0
        while not self._ended.wait(_BEAT_S):
            try:
                self._look()
                lost = 0
            except RuntimeError:
                lost += 1
            if lost == _MOST_LOST and 0 not in self._left and not self._ended.is_set():
                self._judge(0, f"{self._name(0)} has died, or cannot be reached any more")
            self._looked = time.monotonic()
            if self._since is not None and time.monotonic() - self._since > _GRACE_S and not self._ended.is_set():
                self._end()

    def _look(self, everywhere: bool = False) -> None:
        """Give a sign of life, read the verdict, and look at those ranks that this one watches, or at all.

        Raises:
            RuntimeError: the store does not answer.
        """
        if time.monotonic() - self._looked > 10 * _BEAT_S:  # this process was stopped, and maybe all were
            self._signs.clear()
        self._store.add(f"beat/{self.rank}", 1)
        if self._verdict is None and self._store.check(["verdict"]):
            self._take_verdict()
        if self._main.stuck(SILENCE_S):
            self._judge(self.rank, f"{self._name(self.rank)} hangs: it has done nothing for {SILENCE_S:.0f} s")
        watched = {*range(self.world)} if everywhere or self.rank == 0 else {0}
        for rank in sorted(watched - self._left - {self.rank}):
            trouble = self._trouble(rank)
            if self._store.check([f"left/{rank}"]):
                self._left.add(rank)
            elif trouble:
                self._judge(rank, f"{self._name(rank)} {trouble}")

    def _trouble(self, rank: int) -> str:
        """Return what is wrong with another rank, "" for nothing."""
        home, now = self._homes[rank], time.monotonic()
        beside = home.is_beside(self._homes[self.rank])
        if beside and not home.exists():
            return "has died without a word (killed, or out of memory)"
        # Code that keeps the interpreter's lock gives no sign of life, but it computes.
        sign = (self._store.add(f"beat/{rank}", 0), home.ticks() if beside else 0)
        before, since = self._signs.get(rank, (None, now))
        since = since if sign == before else now
        self._signs[rank] = (sign, since)
        return f"has not answered for {now - since:.0f} s" if now - since > self._patience else ""

    def _judge(self, rank: int, sentence: str) -> None:
        """Say that a rank has failed, unless somebody has said so already; then that holds."""
        if self._verdict is not None:
            return
        try:
            self._store.compare_set("verdict", "", json.dumps([rank, sentence]))
            self._take_verdict()
        except RuntimeError:
            self._verdict, self._since = (rank, sentence), time.monotonic()

    def _take_verdict(self) -> None:
        """Read the verdict."""
        rank, sentence = json.loads(self._store.get("verdict").decode())
        self._verdict, self._since = (rank, sentence), time.monotonic()

    def _await(self, keys: list[str]) -> bool:
        """Wait a little for keys; return whether they came."""
        until = time.monotonic() + _PATIENCE_S
        while not self._store.check(keys):
            if time.monotonic() > until:
                return False
            time.sleep(_BEAT_S / 10)
        return True

    def _name(self, rank: int) -> str:
        """Name a rank."""
        return f"rank {rank} of {self.world} ({self._homes[rank]})"

    def _end(self) -> None:
        """End this process, which is busy with something that cannot be interrupted."""
        assert self._verdict is not None
        if self.rank == 0 or (self.rank == 1 and self._verdict[0] == 0):
            os.write(2, f"relaxprune: {self._verdict[1]}; what is finished is kept\n".encode())
        os._exit(EXIT_CODE)
