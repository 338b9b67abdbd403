"""``python -m relaxprune``: the same as the ``relaxprune`` command."""

from __future__ import annotations

import sys

from relaxprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
