"""The memory that solving one layer file takes, predicted from the file's header."""

from __future__ import annotations

from relaxprune.costs.memory import CERTIFIED_BYTES, GRAM_BYTES, SOLVER_MATRICES, WEIGHT_BYTES
from relaxprune.options.solve_options import SolveOptions
from relaxprune.support.tensor_header import DTYPES, TensorHeader

PROCESS_BYTES = 320 * 2**20  # the interpreter and its libraries, before any layer


def solving_bytes(header: TensorHeader, options: SolveOptions, certify: str | None) -> int:
    """Return the bytes that a process takes for one file beside ``PROCESS_BYTES``; 0 for a file that has no layer.

    That is: the file's tensors as they are stored; 20 bytes for each entry of the Gram, and of every further moment;
    12 for each weight, or 60 with a certificate; and temporaries: 26 float64 tensors of the weight's shape, but no more
    than the memory budget, which the method "sdp" takes whole.

    Args:
        header: of the problem file.
        options: what is asked of the solve.
        certify: the certificate's method, None for the solver's own.
    """
    names = [name for name in ("weight", "gram", "cross", "dense_gram") if name in header.tensors]
    entries = {name: header.tensors[name] for name in names}
    if "weight" not in entries or any(len(entry.shape) != 2 or entry.dtype not in DTYPES for entry in entries.values()):
        return 0
    stored = sum(entry.end - entry.start for entry in entries.values())
    rows, cols = entries["weight"].shape
    moments = (len(entries) - 1) * cols**2
    weights = rows * cols
    budget = options.memory_bytes
    temporaries = budget if certify == "sdp" else min(budget, 8 * SOLVER_MATRICES * weights)
    per_weight = WEIGHT_BYTES if certify is None else CERTIFIED_BYTES
    return stored + GRAM_BYTES * moments + per_weight * weights + temporaries
