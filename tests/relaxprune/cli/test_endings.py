"""How commands end that cannot go on: signals at any time, and what the operating system refuses."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from relaxprune.cli import loading, main
from relaxprune.cli.refusals import refusal
from relaxprune.problems import RelaxPruneError

from ..command_line import SAME, arguments, only_sentence

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX systems")
MARK = "relaxprune: "


def start(words: list[str], folder: Path, prepare: Callable[[], Any] | None = None) -> subprocess.Popen[str]:
    """Start a command in a process of its own, with Ctrl-C answered as in a terminal."""

    def first() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if prepare is not None:
            prepare()

    command = [sys.executable, "-P", "-m", "relaxprune", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, preexec_fn=first)


def wait_for_handlers(process: subprocess.Popen[str]) -> None:
    """Wait until the process answers SIGTERM: before that it is Python that starts, and not yet relaxprune."""
    status = Path(f"/proc/{process.pid}/status")
    for _ in range(2000):
        if not status.exists():
            time.sleep(0.5)
            return
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


MOMENTS = [(0.2, signal.SIGINT), (0.6, signal.SIGTERM)]
OTHERS = [(delay, number) for delay in (0.0, 0.05, 0.2, 0.6, 1.2, 2.0) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("delay", "number"),
    [*MOMENTS, *(pytest.param(*one, marks=pytest.mark.long) for one in OTHERS if one not in MOMENTS)],
)
def test_a_signal_in_the_first_moments(place: Path, tmp_path: Path, delay: float, number: int) -> None:
    process = start(arguments(place, tmp_path / "out"), tmp_path)
    wait_for_handlers(process)
    time.sleep(delay)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    if process.returncode != 0:  # a fast machine is done by then
        assert (process.returncode, said.count("\n")) == (128 + number, 1), said
        assert said.startswith(f"{MARK}interrupted")


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.long) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_under_way(place: Path, tmp_path: Path, number: int) -> None:
    words = arguments(place, tmp_path / "out", "--json")
    process = start(words, tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "block_done":
            process.send_signal(number)
            break
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + number, said
    assert said.startswith(f"{MARK}interrupted") and said.count("\n") == 1
    assert f"finished blocks are kept in {tmp_path / 'out'}, and --resume continues from them" in said
    assert main([*words, "--resume"]) == 0


@pytest.mark.long
def test_a_signal_that_is_ignored_stays_so(place: Path, tmp_path: Path) -> None:
    process = start(arguments(place, tmp_path / "out"), tmp_path, lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_handlers(process)
    for _ in range(20):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == 0


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals as a terminal leaves them, also where the tests run in the background and inherit an ignored one."""
    ignored = [one for one in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, signal.default_int_handler if one is signal.SIGINT else signal.SIG_DFL)
    yield
    for one in ignored:
        signal.signal(one, signal.SIG_IGN)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("raised", [RelaxPruneError("Could not import"), ImportError("half"), RuntimeError("c"), None])
def test_an_interruption_that_a_library_renames_or_swallows(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    raised: Exception | None,
) -> None:
    load = loading.load

    def swallowing(*words: Any) -> Any:
        try:
            signal.raise_signal(number)
        except BaseException:
            if raised is not None:
                raise raised from None
        return load(*words)

    before = signal.getsignal(number)
    monkeypatch.setattr(loading, "load", swallowing)
    assert main(arguments(place, tmp_path / "out", "--quiet")) == 128 + number
    assert only_sentence(capsys).endswith("; nothing is written")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "No space left on device: '/a/b'"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), os.strerror(errno.EDQUOT)),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x", None, "y"), ": 'x' and 'y'"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (ImportError("libtorch.so: cannot open shared object file: Too many open files"), "Too many open files"),
        (MemoryError(), "memory is not enough"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
            "can't",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory"),
        (OSError("a library's own"), None),
        (RuntimeError("a bug"), None),
        (KeyError("a bug"), None),
        (KeyboardInterrupt(), None),
    ],
    ids=repr,
)
def test_what_counts_as_refused(error: BaseException, expected: str | None) -> None:
    found = refusal(error)
    assert found is None if expected is None else found is not None and expected in found


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.EMFILE, "x")]
)
def test_memory_that_is_not_there_ends_like_an_interruption(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from relaxprune.pruning import mask_solver

    solve, calls = mask_solver.solve, []

    def failing(*words: Any, **more: Any) -> Any:
        calls.append(None)
        if len(calls) == 10:  # a layer of the second block
            raise error
        return solve(*words, **more)

    words = arguments(place, tmp_path / "out", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(mask_solver, "solve", failing)
        patch.setattr("relaxprune.cli.prune.run.with_prediction", lambda plan, *_: plan)
        assert main(words) == 2
    assert "1 finished blocks are kept in" in only_sentence(capsys)
    assert main([*words, "--resume"]) == 0


@pytest.mark.long
def test_a_limit_of_the_system_that_other_libraries_meet(place: Path, tmp_path: Path) -> None:
    """No file may be larger than 60 kB: the model's is, which another library writes."""
    out = tmp_path / "out"
    words = arguments(place, out, "--quiet")
    process = start(words, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000)))
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and said.count("\n") == 1, said
    assert "File too large" in said and "3 finished blocks are kept in" in said
    assert not [path for path in out.rglob("*") if path.name.endswith(".part") or path.parent.name == "staging"]
    assert main([*words, "--resume"]) == 0
    assert main(arguments(place, tmp_path / "whole", "--quiet")) == 0
    for name in SAME:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_reader_that_goes_away(place: Path, tmp_path: Path) -> None:
    process = start(arguments(place, tmp_path / "out"), tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=120) == 2 and said.count("\n") == 1
    assert said.startswith(f"{MARK}Broken pipe; ")
    process.stderr.close()


def test_a_disk_that_is_too_small(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [100_000]
    monkeypatch.setattr("relaxprune.support.outputs.shutil.disk_usage", lambda _: type("Usage", (), {"free": free[0]}))
    words = arguments(place, tmp_path / "out", "--quiet")
    assert main(words) == 2
    assert "needs about 0." in (said := only_sentence(capsys)) and "0.1 MiB are free: make room" in said
    assert list(tmp_path.iterdir()) == []
    free[0] = 100_000_000
    assert main(words) == 0
    free[0] = 0
    assert main([*words, "--resume"]) == 0, "a finished run takes no more"
