"""Run the command line in a process that kills itself (SIGKILL, so without any clean-up) at a chosen call.

Usage: ``python kill_at.py NAME N ARGUMENT...``; the process dies when function NAME of the run folder's module
is called for the Nth time, before it does anything.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any
from unittest.mock import patch

from relaxprune.cli import main
from relaxprune.runs import run_folder


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
    with patch.object(run_folder, name, killing(getattr(run_folder, name), int(sys.argv[2]))):
        sys.exit(main(sys.argv[3:]))
