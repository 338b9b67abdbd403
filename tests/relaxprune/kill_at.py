"""Run command lines in processes that kill themselves (SIGKILL, so without any clean-up) at a chosen call.

Usage: ``python kill_at.py NAME N ARGUMENT... [-- NAME N ARGUMENT...]...``. A process dies when the modules of the run
folder call function NAME for the Nth time, before it does anything. All are forks of one that has imported everything,
which is most of a small run's time. The exit code is 0 if every process killed itself, and 1 if not.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from itertools import groupby
from typing import Any

from relaxprune.cli import main
from relaxprune.runs import block_files, run_folder, run_progress

# What a run of a small llama imports when it first needs it.
LATE = (
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "relaxprune.cli.prune.run",
)


def killing(function: Any, deadly_call: int) -> Any:
    """Wrap ``function`` so that its ``deadly_call``-th call ends the process."""
    calls: list[None] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == deadly_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def killed(name: str, deadly_call: int, arguments: list[str]) -> bool:
    """Run one command line in a fork; tell whether it killed itself."""
    child = os.fork()
    if child == 0:
        users = [module for module in (run_folder, run_progress, block_files) if hasattr(module, name)]
        deadly = killing(getattr(users[0], name), deadly_call)
        for module in users:
            setattr(module, name, deadly)
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    for module in LATE:
        import_module(module)
    jobs = [list(words) for separator, words in groupby(sys.argv[1:], lambda word: word == "--") if not separator]
    sys.exit(not all([killed(name, int(number), words) for name, number, *words in jobs]))
