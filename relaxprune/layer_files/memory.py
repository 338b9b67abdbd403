"""The memory that solving one layer file takes, predicted from the file's header."""

from __future__ import annotations

import math

from relaxprune.costs.memory import CERTIFIED_BYTES, GRAM_BYTES, SOLVER_MATRICES, WEIGHT_BYTES
from relaxprune.options.solve_options import SolveOptions
from relaxprune.support.tensor_header import DTYPES, TensorHeader

_MOMENTS = ("gram", "cross", "dense_gram", "outputs")
_READ = ("weight", *_MOMENTS, "row_groups", "fisher", "linear")
_DIMENSIONS = {"row_groups": 1, "fisher": 3}  # others have 2, a Gram 2 or 3
PROCESS_BYTES = 320 * 2**20  # the interpreter and its libraries, before any layer


def solving_bytes(header: TensorHeader, options: SolveOptions, certify: str | None) -> int:
    """Return the bytes that a process takes for one file beside ``PROCESS_BYTES``; 0 for a file that has no layer.

    That is: the file's tensors as they are stored; 20 bytes for each entry of the Gram, and of every further moment;
    12 for each weight and entry of ``fisher``, or 60 with a certificate; and temporaries: 26 float64 tensors of the
    weight's shape, but no more than the memory budget, which the method "sdp" takes whole.

    Args:
        header: of the problem file.
        options: what is asked of the solve.
        certify: the certificate's method, None for the solver's own.
    """
    entries = {name: header.tensors[name] for name in _READ if name in header.tensors}
    sound = all(len(entry.shape) == _DIMENSIONS.get(name, 2) for name, entry in entries.items() if name != "gram")
    if "weight" not in entries or not sound or any(entry.dtype not in DTYPES for entry in entries.values()):
        return 0
    stored = sum(entry.end - entry.start for entry in entries.values())
    rows, cols = entries["weight"].shape
    moments = sum(math.prod(entries[name].shape) for name in _MOMENTS if name in entries)
    weights = rows * cols * (1 + (entries["fisher"].shape[1] if "fisher" in entries else 0))
    budget = options.memory_bytes
    temporaries = budget if certify == "sdp" else min(budget, 8 * SOLVER_MATRICES * weights)
    per_weight = WEIGHT_BYTES if certify is None else CERTIFIED_BYTES
    return stored + GRAM_BYTES * moments + per_weight * weights + temporaries
