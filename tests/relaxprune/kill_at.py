"""Run the command line in a process that kills itself (SIGKILL, so without any clean-up) at a chosen call.

Usage: ``python kill_at.py NAME N ARGUMENT...``; the process dies when the modules of the run folder call function NAME
for the Nth time, before it does anything.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from relaxprune.cli import main
from relaxprune.runs import block_files, run_folder, run_progress


def killing(function: Any, deadly_call: int) -> Any:
    """Wrap ``function`` so that its ``deadly_call``-th call ends the process."""
    calls: list[None] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == deadly_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    name = sys.argv[1]
    users = [module for module in (run_folder, run_progress, block_files) if hasattr(module, name)]
    deadly = killing(getattr(users[0], name), int(sys.argv[2]))
    for module in users:
        setattr(module, name, deadly)
    sys.exit(main(sys.argv[3:]))
