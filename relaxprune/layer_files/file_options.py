"""What a caller may ask of many layer files: of every solve, of every file, and of the processes that do it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from relaxprune.certificates.limits import check_limits
from relaxprune.certificates.verify.claim import METHODS
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.solve_options import SolveOptions
from relaxprune.problems.checks import check_device, one_of, positive_number, whole_number
from relaxprune.problems.errors import RelaxPruneError


@dataclass(frozen=True, kw_only=True)
class FileOptions(SolveOptions):
    """What is asked of every problem file, as in ``SolveOptions``, and how its processes work.

    ``start`` cannot be a mask here: it would fit one layer at most. The last three fields say how a call is carried
    out; a folder of answers can be gone on with under other values of them.

    Attributes:
        weights: "keep" leaves kept weights as they are, "refit" gives them new values; None for what the solver's
            published method does, as in ``PruneOptions``.
        damping: for "refit", as in ``PruneOptions``.
        certify: method that proves the bound of every answer: "fw", "diagonal", "sdp" or "exact"; None keeps the bound
            that the solver proves by itself. Where weights move only "exact" is possible. With a method every answer's
            certificate is written beside its mask.
        certify_rows: how many rows "diagonal" and "sdp" draw; None for all.
        certify_time_s: seconds for "sdp", shared by its rows.
        device: where every process computes, None for the CPU.
        jobs: how many files are solved at the same time, each in a process of its own. The threads that torch may use
            are divided among them.
        retries: how often a file is tried again whose process died. It is tried alone then.
        total_memory_bytes: what all processes together may take of the memory of ``device``; None for what the system
            has free at the start. A file is begun only if what is predicted for it fits beside those under way.

    Raises:
        RelaxPruneError: a field with a value that makes no sense, or does not go with another.
    """

    weights: str | None = None
    damping: float | None = None
    certify: str | None = None
    certify_rows: int | None = None
    certify_time_s: float | None = None
    device: str | None = None
    jobs: int = 1
    retries: int = 1
    total_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if isinstance(self.start, Tensor):
            raise RelaxPruneError("start must be the name of a starting mask or None for many files, got a mask")
        self.layer_options()
        self._check_certify()
        whole_number("jobs", self.jobs, 1)
        whole_number("retries", self.retries, 0)
        if self.total_memory_bytes is not None:
            whole_number("total_memory_bytes", self.total_memory_bytes, 1)
        self._check_device()

    def layer_options(self) -> PruneOptions:
        """Return whether weights move, and how; what is left open stays so."""
        return PruneOptions(weights=self.weights, damping=self.damping)

    def asked(self) -> SolveOptions:
        """Return what is asked of every solve."""
        return SolveOptions(**{item.name: getattr(self, item.name) for item in fields(SolveOptions)})

    def _check_certify(self) -> None:
        """Raise RelaxPruneError for an unknown method, or limits that it does not use."""
        limits = {"certify_rows": self.certify_rows, "certify_time_s": self.certify_time_s}
        if self.certify is None:
            for name, value in limits.items():
                if value is not None:
                    raise RelaxPruneError(f"{name} is {value!r}, but certify is None; leave it out or name a method")
            return
        one_of("certify", self.certify, METHODS, " or None")
        if self.certify_rows is not None:
            whole_number("certify_rows", self.certify_rows, 1)
        if self.certify_time_s is not None:
            positive_number("certify_time_s", self.certify_time_s)
        check_limits(self.certify, self.certify_rows, self.certify_time_s)

    def _check_device(self) -> None:
        """Raise RelaxPruneError for a device that is not there, or one whose free memory nobody has said."""
        if self.device is None:
            return
        if check_device(self.device).type != "cpu" and self.total_memory_bytes is None:
            raise RelaxPruneError(
                f"total_memory_bytes must say how much of the memory of device {self.device!r} may be used, got None"
            )
