"""A rank that dies, fails or hangs ends the others with one sentence that names it; one that computes does not."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relaxprune.ranks import RankError, joined
from relaxprune.ranks import process as processes
from relaxprune.ranks import watch as watching

from ..forks import Ended, forked


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENCE_S", 1.5)
    monkeypatch.setattr(watching, "_GRACE_S", 1.5)
    monkeypatch.setattr(watching, "_BEAT_S", 0.1)


def end(signal_number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal_number)


def fail() -> None:
    raise ValueError("an inner fault\nand more")


def ranks_of(world: int, victim: int, what: Callable[[], None], folder: Path) -> list[Ended]:
    """Ranks that talk, of which one then does ``what`` while the others wait; each writes how it ends."""

    def work(rank: int) -> object:
        try:
            with joined() as ranks:
                ranks.exchange(rank)
                if rank == victim:
                    what()
                ranks.exchange(rank)
        except (RankError, ValueError, KeyboardInterrupt) as error:
            return [type(error).__name__, str(error), ranks.silent]
        return None

    return forked(world, work, folder)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_is_killed_is_named(victim: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = ranks_of(3, victim, end(signal.SIGKILL), tmp_path)
    assert ended[victim].code == -signal.SIGKILL
    for rank in {0, 1, 2} - {victim}:
        kind, sentence, silent = ended[rank].told
        assert kind == "RankError" and re.match(rf"rank {victim} of 3 \(process \d+ on \S+\) has died", sentence)
        assert silent is (rank != min({0, 1, 2} - {victim})), "one rank speaks"
        assert ended[rank].seconds < 20


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_fails_gives_its_reason(victim: int, tmp_path: Path) -> None:
    ended = ranks_of(2, victim, fail, tmp_path)
    assert ended[victim].told == ["ValueError", "an inner fault\nand more", False]
    kind, sentence, silent = ended[1 - victim].told
    assert kind == "RankError" and silent is (victim == 0)
    assert re.fullmatch(rf"rank {victim} of 2 \(.*\) has failed: ValueError: an inner fault", sentence)


def test_a_rank_that_is_interrupted_says_so(tmp_path: Path) -> None:
    ended = ranks_of(2, 1, end(signal.SIGINT), tmp_path)
    assert ended[1].told[0] == "KeyboardInterrupt"
    assert re.fullmatch(r"rank 1 of 2 \(.*\) was interrupted", ended[0].told[1])


def test_a_launcher_that_interrupts_the_others_does_not_hide_who_died(tmp_path: Path) -> None:
    """As torchrun does: the others get a signal when one is dead."""

    def work(rank: int) -> object:
        try:
            with joined() as ranks:
                others = ranks.exchange(os.getpid())
                if rank == 1:
                    os.kill(others[0], signal.SIGSTOP)
                    os.kill(others[2], signal.SIGSTOP)
                    if os.fork() == 0:  # ends the others once rank 1 is dead
                        while os.path.exists(f"/proc/{others[1]}"):
                            time.sleep(0.01)
                        for other in (others[0], others[2]):
                            os.kill(other, signal.SIGINT)
                            os.kill(other, signal.SIGCONT)
                        os._exit(0)
                    os.kill(os.getpid(), signal.SIGKILL)
                ranks.exchange(rank)
        except (RankError, KeyboardInterrupt) as error:
            return [type(error).__name__, str(error)]
        return None

    ended = forked(3, work, tmp_path)
    for rank in (0, 2):
        assert ended[rank].told[0] == "RankError" and ended[rank].told[1].startswith("rank 1 of 3"), ended[rank]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_is_stopped_is_named(victim: int, tmp_path: Path) -> None:
    def work(rank: int) -> object:
        try:
            with joined() as ranks:
                others = ranks.exchange(os.getpid())
                if rank == victim:
                    if os.fork() == 0:  # lets it go again once the other one is gone
                        while processes.Home(others[1 - victim], "", "").exists():
                            time.sleep(0.01)
                        os.kill(others[victim], signal.SIGCONT)
                        os._exit(0)
                    os.kill(os.getpid(), signal.SIGSTOP)
                ranks.exchange(rank)
        except RankError as error:
            return str(error)
        return None

    ended = forked(2, work, tmp_path)
    sentence = ended[1 - victim].told
    assert sentence.startswith(f"rank {victim} of 2") and "has not answered for" in sentence
    assert ended[1 - victim].seconds < 25


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
def test_a_rank_that_hangs_is_ended(tmp_path: Path) -> None:
    ended = ranks_of(2, 1, lambda: time.sleep(60), tmp_path)
    assert re.fullmatch(r"rank 1 of 2 \(.*\) hangs: it has done nothing for 2 s", ended[0].told[1])
    assert ended[1].code == watching.EXIT_CODE and ended[1].seconds < 20


@pytest.mark.usefixtures("impatient")
def test_a_rank_that_is_deep_in_something_is_ended_all_the_same(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        with joined() as ranks:
            ranks.exchange(rank)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            until = time.monotonic() + 40
            while time.monotonic() < until:  # and never looks at the others
                sum(range(1000))
        return None

    ended = forked(2, work, tmp_path)
    assert ended[0].code == watching.EXIT_CODE and ended[0].seconds < 20
    assert re.search(r"rank 1 of 2 \(.*\) has died without a word", ended[0].errors)


@pytest.mark.usefixtures("impatient")
def test_a_rank_that_computes_is_left_alone(tmp_path: Path) -> None:
    """Even where it keeps the interpreter's lock, so that its thread can give no sign of life."""

    def compute() -> None:
        sum(range(5 * 10**7))  # in one piece, without letting other threads run

    ended = ranks_of(2, 1, compute, tmp_path)
    assert [rank.told for rank in ended] == [None, None], ended
