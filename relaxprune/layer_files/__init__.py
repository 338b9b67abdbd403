"""Many layer files: each solved by itself, in processes of this machine, and kept in one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .file_options import FileOptions as FileOptions
    from .outcomes import FileOutcome as FileOutcome
    from .outcomes import FilesSummary as FilesSummary
    from .solving_files import solve_files as solve_files

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FileOptions": ".file_options",
        "FileOutcome": ".outcomes",
        "FilesSummary": ".outcomes",
        "solve_files": ".solving_files",
    },
)
