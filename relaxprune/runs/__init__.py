"""Run folders: the files of a run, and how they are written and read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relaxprune.support.lazy import lazy

if TYPE_CHECKING:
    from .evaluation_file import KeptDivergence as KeptDivergence
    from .evaluation_file import evaluation_of as evaluation_of
    from .evaluation_file import record_evaluation as record_evaluation
    from .evaluation_file import run_folder_of as run_folder_of
    from .fingerprint import Fingerprint as Fingerprint
    from .fingerprint import plain_values as plain_values
    from .fingerprint import software_versions as software_versions
    from .fingerprint import weights_sha256 as weights_sha256
    from .mask_file import open_mask_file as open_mask_file
    from .mask_file import read_masks as read_masks
    from .mask_file import write_masks as write_masks
    from .problem_file import LayerProblem as LayerProblem
    from .problem_file import read_problem_file as read_problem_file
    from .problem_file import write_problem_file as write_problem_file
    from .run_folder import RunFolder as RunFolder
    from .run_record import RunNotes as RunNotes

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Fingerprint": ".fingerprint",
        "KeptDivergence": ".evaluation_file",
        "LayerProblem": ".problem_file",
        "RunFolder": ".run_folder",
        "RunNotes": ".run_record",
        "evaluation_of": ".evaluation_file",
        "open_mask_file": ".mask_file",
        "plain_values": ".fingerprint",
        "read_masks": ".mask_file",
        "read_problem_file": ".problem_file",
        "record_evaluation": ".evaluation_file",
        "run_folder_of": ".evaluation_file",
        "software_versions": ".fingerprint",
        "weights_sha256": ".fingerprint",
        "write_masks": ".mask_file",
        "write_problem_file": ".problem_file",
    },
)
