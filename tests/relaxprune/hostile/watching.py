"""One run of the command line under watch: how it ends, what it says, takes and writes."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import relaxprune.cli

MOST_SECONDS = 10.0
MOST_BYTES = 1 << 30
_HANGS = 40  # seconds after which a run is stopped, however slow the machine is
_MEMORY = re.compile(
    r"memory is not enough|(out of|not enough) memory|(can't|cannot|unable to) allocate|MemoryError|bad_alloc", re.I
)
_WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree")


class Hung(BaseException):
    """The run was stopped."""


@dataclass
class Seen:
    """What was seen of one run.

    Attributes:
        code: the exit code; None where there was an exception or no end.
        out, err: what it printed.
        faults: what it must not have done: "traceback", "slow", "big", "outside", "noise".
        told: of each fault, what there is to say.
    """

    code: int | None = None
    out: str = ""
    err: str = ""
    faults: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def fault(self, name: str, said: object) -> None:
        """Note a fault."""
        self.faults.add(name)
        self.told.append(f"{name}: {said}")


_WATCH: dict[str, Any] = {"on": False, "allowed": (), "written": []}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCH["on"]:
        return
    if event == "open":
        path, _, flags = arguments
        found = [path] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not isinstance(path, int) else []
    elif event in _WRITES and not any(isinstance(item, int) and item >= 0 for item in arguments[-1:]):
        found = [item for item in arguments[:2] if isinstance(item, str | bytes | Path)]
    else:  # what reads, and what removes by a folder's number: the start of that has an event of its own
        return
    for path in map(os.path.abspath, map(os.fsdecode, found)):
        # A folder cannot be opened to be written to: that is how files without names are made.
        ours = path.startswith(_WATCH["allowed"]) or "__pycache__" in path or path == os.devnull
        if not ours and not (event in ("open", "os.mkdir") and os.path.isdir(path)):
            _WATCH["written"].append(f"{event} {path}")


sys.addaudithook(_audit)


@contextmanager
def _no_more_memory() -> Iterator[None]:
    """Let the process ask for ``MOST_BYTES`` more than it has, where the system can say so."""
    try:
        import resource

        before = resource.getrlimit(resource.RLIMIT_DATA)
        size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    except (ImportError, OSError):
        yield
        return
    files = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_DATA, (int(size.split()[1]) * 1024 + MOST_BYTES, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, files[1]))
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGXFSZ, old)
        resource.setrlimit(resource.RLIMIT_FSIZE, files)
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def _no_more_time() -> Iterator[None]:
    """Stop what does not end."""

    def stop(*_: Any) -> None:
        raise Hung

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def _errors_to(file: Any) -> Iterator[None]:
    """Send everything that goes to the process's stderr into a file: libraries hold on to the old one."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        with open(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1) as text, redirect_stderr(text):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def watch(words: Sequence[str], allowed: Sequence[Path]) -> Seen:
    """Run the command line in this process.

    Args:
        words: the arguments.
        allowed: paths that it may write to, and to hidden files beside them.
    """
    seen = Seen()
    hidden = [path.with_name(f".{path.name}") for path in allowed]
    _WATCH.update(allowed=tuple(map(str, (*allowed, *hidden))), written=[])
    out = StringIO()
    with tempfile.TemporaryFile("w+b") as errors, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with _errors_to(errors):
            started = time.process_time()
            _WATCH["on"] = True
            try:
                with _no_more_memory(), _no_more_time(), redirect_stdout(out):
                    seen.code = relaxprune.cli.main(list(words))
            except Hung:
                seen.fault("slow", f"stopped after {_HANGS} s: {traceback.format_exc(limit=-3)}")
            except BaseException:
                seen.fault("traceback", traceback.format_exc(limit=-6))
            _WATCH["on"] = False
            seconds = time.process_time() - started
        errors.seek(0)
        seen.err = errors.read().decode("utf-8", "replace")
    seen.out = out.getvalue()
    _judge(seen, seconds, [str(item.message) for item in warned])
    return seen


def _judge(seen: Seen, seconds: float, warned: list[str]) -> None:
    """Note what is wrong with how a run ended."""
    if seconds > MOST_SECONDS:
        seen.fault("slow", f"{seconds:.1f} s")
    if _WATCH["written"]:
        seen.fault("outside", _WATCH["written"][:3])
    if _MEMORY.search(seen.err) or any(_MEMORY.search(said) for said in seen.told):
        seen.fault("big", seen.err[:300])
    if "Traceback" in seen.err or seen.code not in (0, 2, 3, None):
        seen.fault("traceback", f"exit {seen.code}: {seen.err[-800:]}")
    bars = [line.rpartition("\r")[2] for line in seen.err.split("\n")]  # people's terminals only; see TQDM_DISABLE
    lines = [line for line in bars if line.strip() and "it/s]" not in line]
    strange = [line for line in lines if not line.startswith("relaxprune: ")]
    if strange or warned or (seen.code == 2 and len(lines) != 1) or (seen.code == 0 and lines):
        seen.fault("noise", [seen.code, *lines[:3], *warned[:2]])
