"""``python -m relaxprune`` and the installed ``relaxprune`` command.

Nothing is imported here before signals are answered: Ctrl-C in the first moments must not end in a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

from relaxprune.cli import interrupts


def main() -> int:
    """Run the command line; returns the exit code."""
    interrupts.answer(interrupts.end_at_once)
    from relaxprune.cli.app import main as run

    code = run()
    interrupts.answer(signal.SIG_DFL)  # nothing is left to be told
    try:
        sys.stdout.flush()
    except OSError:  # whoever reads it is gone, or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 2
    return code


if __name__ == "__main__":
    sys.exit(main())
